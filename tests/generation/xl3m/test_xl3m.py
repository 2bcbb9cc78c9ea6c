"""XL3M inside `generate`: what is read, that decoding is stock's, and what it gives back."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LogitsProcessorList, PreTrainedTokenizerFast, StoppingCriteriaList
from transformers.generation import LogitsProcessor, StoppingCriteria

from hf_longctx import LMInfinite
from hf_longctx.generation.xl3m import XL3M, Selection, xl3m
from tests.reference import xl3m as reference
from tests.tiny import BOS, EOS, FAMILIES, MORE_FAMILIES, PAD, VOCAB, left_padded, text, tiny

WINDOW, QUESTION, NEW = 96, 6, 5
SMALL = XL3M(segment=16, overlap=4, key_context=40)
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny(max_position_embeddings=WINDOW)


@pytest.fixture(scope="module")
def prompt() -> Tensor:
    return text(1, 400, seed=3)


def ask(model: Any, ids: Tensor, settings: XL3M = SMALL, **more: Any) -> Any:
    return model.generate(ids, custom_generate=settings, question=QUESTION, **{**GREEDY, **more})


def key_context(ids: Tensor, selection: Selection, head: int = 0) -> Tensor:
    """The prompt that the model is said to have read."""
    body = ids[0, head:-QUESTION]
    parts = [body[a:b] for a, b in selection.spans]
    return torch.cat([ids[0, :head], *parts, ids[0, -QUESTION:]])[None]


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
@pytest.mark.parametrize("score", ["gain", "question_nll", "entropy"])
def test_scores_and_choice_are_those_of_the_reference(family: str, score: str) -> None:
    model = tiny(family, max_position_embeddings=WINDOW)
    ids = text(1, 203, seed=7)
    head, body, question = ids[0, :3].tolist(), ids[0, 3:-QUESTION].tolist(), ids[0, -QUESTION:].tolist()
    for keep in (0.0, 0.5):
        settings = XL3M(segment=16, overlap=5, key_context=50, score=score, keep=keep)
        _, (found,) = ask(model, ids, settings, head=3, return_segments=True)
        places = reference.segments(body, 16, 5)
        wanted = reference.scores(model, head, body, question, 16, 5)
        for name, values in wanted.items():  # fp32 sums in another order
            torch.testing.assert_close(found.scores[name], torch.tensor(values), atol=2e-4, rtol=2e-4)
        chosen = reference.kept(found.scores[score].tolist(), places, keep, 50, score == "gain")
        assert [segment.number for segment in found.kept] == chosen
        assert [(segment.start, segment.stop) for segment in found.kept] == [places[i] for i in chosen]
        read = torch.cat([torch.tensor(body)[a:b] for a, b in found.spans]).tolist()
        assert read == reference.key_context(body, places, chosen)


def test_answer_is_that_of_stock_generate_on_the_key_context(model: Any, prompt: Tensor) -> None:
    output, (found,) = ask(model, prompt, return_segments=True)
    assert len(found.kept) > 1
    assert list(found.spans) == sorted(found.spans)
    assert sum(b - a for a, b in found.spans) <= 40
    short = key_context(prompt, found)
    assert torch.equal(output[:, : prompt.shape[1]], prompt)
    assert torch.equal(output[:, prompt.shape[1] :], model.generate(short, **GREEDY)[:, short.shape[1] :])
    assert not torch.equal(output[:, -NEW:], model.generate(prompt[:, -WINDOW + NEW :], **GREEDY)[:, -NEW:])


def test_a_prompt_that_fits_the_window_is_stocks(model: Any) -> None:
    ids = text(1, WINDOW - NEW, seed=4)
    output, (found,) = ask(model, ids, return_segments=True)
    assert found.whole
    assert str(found) == f"all {WINDOW - NEW - QUESTION} tokens fit the window"
    assert torch.equal(output, model.generate(ids, **GREEDY))
    _, (found,) = ask(model, text(1, WINDOW - NEW + 1), return_segments=True)
    assert not found.whole


def test_scoring_runs_without_a_mask_in_batches_and_with_few_logits(
    model: Any, prompt: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[torch.Size, Any]] = []
    stock = torch.nn.functional.scaled_dot_product_attention

    def watch(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append((query.shape, kwargs.get("attn_mask")))
        return stock(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    logits: list[torch.Size] = []
    hook = model.lm_head.register_forward_hook(lambda module, args, out: logits.append(out.shape))
    ask(model, prompt)
    hook.remove()
    scored = [(shape, mask) for shape, mask in calls if shape[0] > 1]
    assert scored
    assert all(mask is None and shape[2] == 16 + QUESTION for shape, mask in scored)
    assert logits[0][1:] == (QUESTION, VOCAB)


def test_sampling_beams_and_outputs_are_stocks(model: Any, prompt: Tensor) -> None:
    _, (found,) = ask(model, prompt, return_segments=True)
    short = key_context(prompt, found)
    for settings in (
        {"do_sample": True, "temperature": 0.7, "num_return_sequences": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"repetition_penalty": 1.3, "min_new_tokens": 3, "eos_token_id": 5, "pad_token_id": PAD},
        {"prompt_lookup_num_tokens": 2},
    ):
        wanted: dict[str, Any] = {**GREEDY, "return_dict_in_generate": True, "output_scores": True, **settings}
        torch.manual_seed(1)
        stock = model.generate(short, **wanted)
        torch.manual_seed(1)
        ours = ask(model, prompt, **wanted)
        assert torch.equal(ours.sequences[:, prompt.shape[1] :], stock.sequences[:, short.shape[1] :]), settings
        assert torch.equal(ours.sequences[:, : prompt.shape[1]], prompt.expand(len(stock.sequences), -1))
        assert all(torch.equal(a, b) for a, b in zip(ours.scores, stock.scores, strict=True))


class Never(LogitsProcessor):
    """Forbids one token, and remembers how long the prompt was."""

    def __init__(self, token: int) -> None:
        self.token, self.lengths = token, []  # type: ignore[var-annotated]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.lengths.append(input_ids.shape[1])
        return scores.index_fill(1, torch.tensor([self.token]), float("-inf"))


class After(StoppingCriteria):
    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Any:
        self.calls -= 1
        return torch.full((len(input_ids),), self.calls <= 0)


def test_processors_and_criteria_of_the_caller_work_once_each(model: Any, prompt: Tensor) -> None:
    first = int(ask(model, prompt)[0, prompt.shape[1]])
    never = Never(first)
    output, (found,) = ask(
        model, prompt, logits_processor=LogitsProcessorList([never]), repetition_penalty=1.2, return_segments=True,
        stopping_criteria=StoppingCriteriaList([After(3)]),
    )  # fmt: skip
    assert first not in output[0, prompt.shape[1] :].tolist()
    assert output.shape[1] == prompt.shape[1] + 3
    assert never.lengths == [key_context(prompt, found).shape[1] + i for i in range(3)]


def of_bytes() -> PreTrainedTokenizerFast:
    """A token a byte, since stop strings need byte-level tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def test_stop_strings_and_limits_of_time_end_it(prompt: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    model, made = tiny(max_position_embeddings=WINDOW, vocab_size=256), of_bytes()
    model.generation_config.pad_token_id = PAD
    plain = ask(model, prompt)
    third = made.decode(plain[0, prompt.shape[1] + 2])
    stopped = ask(model, prompt, stop_strings=[third], tokenizer=made)
    assert stopped.shape[1] <= prompt.shape[1] + 3
    assert torch.equal(stopped, plain[:, : stopped.shape[1]])
    caplog.clear()
    assert ask(model, prompt, max_time=1e-9).shape[1] == prompt.shape[1] + 1
    assert "MaxTimeCriteria" not in caplog.text


def test_a_setting_of_the_models_that_the_call_switches_off_stays_off(prompt: Tensor) -> None:
    model = tiny(max_position_embeddings=WINDOW)
    plain = ask(model, prompt)
    model.generation_config.repetition_penalty = 5.0
    assert not torch.equal(ask(model, prompt), plain)
    assert torch.equal(ask(model, prompt, repetition_penalty=None), plain)
    assert model.generation_config.repetition_penalty == 5.0


class Heard:
    def __init__(self) -> None:
        self.put_, self.ended = [], False  # type: ignore[var-annotated]

    def put(self, value: Tensor) -> None:
        self.put_.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


def test_streamer_hears_the_prompt_once_and_every_token(model: Any, prompt: Tensor) -> None:
    heard = Heard()
    output = ask(model, prompt, streamer=heard)
    assert heard.ended
    assert heard.put_[0] == prompt[0].tolist()
    assert [token for tokens in heard.put_[1:] for token in tokens] == output[0, prompt.shape[1] :].tolist()


def test_rows_of_a_padded_batch_equal_rows_alone(model: Any) -> None:
    rows = [text(1, n, seed=n)[0] for n in (300, 180, 60)]
    ids, mask = left_padded(rows)
    together, found = ask(model, ids, attention_mask=mask, return_segments=True)
    assert [selection.whole for selection in found] == [False, False, True]
    for row, written in zip(rows, together[:, ids.shape[1] :], strict=True):
        assert torch.equal(ask(model, row[None])[0, len(row) :], written)


@pytest.mark.parametrize("pad", [PAD, 11, 30])
@pytest.mark.parametrize("how", [{}, {"num_beams": 2}])
def test_processors_tell_the_padding_of_the_prompt_that_is_read(model: Any, how: dict[str, Any], pad: int) -> None:
    """And not that of the prompts as they were given, which are longer and padded otherwise."""
    rows = [text(1, n, seed=n)[0] for n in (300, 180, 60)]
    ids, mask = left_padded(rows)
    ids[mask == 0] = pad
    settings = {"repetition_penalty": 1.7, "pad_token_id": pad, **how}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = ask(model, ids, attention_mask=mask, **settings)
    for row, written in zip(rows, together[:, ids.shape[1] :], strict=True):
        _, (found,) = ask(model, row[None], return_segments=True)
        short = key_context(row[None], found) if not found.whole else row[None]
        stock = model.generate(short, attention_mask=torch.ones_like(short), **{**GREEDY, **settings})
        assert torch.equal(stock[0, short.shape[1] :], written)


def test_settings_are_saved_with_the_model(model: Any, prompt: Tensor, tmp_path: Path) -> None:
    own = copy.deepcopy(model)
    SMALL.store_(own)
    own.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    _, (found,) = ask(loaded, prompt, xl3m, return_segments=True)
    _, (wanted,) = ask(model, prompt, return_segments=True)
    assert found.kept == wanted.kept
    assert torch.equal(loaded.generate(prompt[:, :50], **GREEDY), model.generate(prompt[:, :50], **GREEDY))
    loaded.generation_config.xl3m["segmnt"] = 3
    with pytest.raises(ValueError, match="Did you mean 'segment'"):
        ask(loaded, prompt, xl3m)


def test_a_model_with_a_method_reads_segments_through_it(model: Any, prompt: Tensor) -> None:
    with LMInfinite(n_global=2, n_local=8).on(copy.deepcopy(model)) as windowed:
        _, (found,) = ask(windowed, prompt, return_segments=True)
        _, (stock,) = ask(model, prompt, return_segments=True)
    assert not torch.allclose(found.scores["entropy"], stock.scores["entropy"])


def test_progress_counts_tokens(model: Any, prompt: Tensor) -> None:
    reached: list[int] = []
    ask(model, prompt, read_progress=reached.append)
    assert reached == sorted(reached)
    assert reached[-1] == prompt.shape[1] - QUESTION


def test_document_from_anywhere_is_as_if_it_stood_in_the_prompt(model: Any, prompt: Tensor) -> None:
    body = prompt[0, 2:-QUESTION]
    frame = torch.cat([prompt[:, :2], prompt[:, -QUESTION:]], 1)
    wanted, (stock,) = ask(model, prompt, head=2, return_segments=True)

    def one_by_one() -> Iterator[int]:
        yield from body.tolist()

    for document in (body, body.tolist(), one_by_one(), iter(body.split(7)), body.numpy()):
        output, (found,) = ask(model, frame, head=2, document=document, return_segments=True)
        assert found.kept == stock.kept
        assert torch.equal(output[:, : frame.shape[1]], frame)
        assert torch.equal(output[:, frame.shape[1] :], wanted[:, prompt.shape[1] :])


def test_ids_of_special_tokens_need_no_tokenizer() -> None:
    model = tiny(max_position_embeddings=WINDOW, eos_token_id=EOS)
    ids = torch.cat([torch.tensor([[BOS]]), text(1, 200)], 1)
    _, (found,) = ask(model, ids, return_segments=True)
    assert found.tokens == 200 - QUESTION  # the first token is the head


def test_compiled_layers_score_as_they_are_and_are_left_as_they_were(
    model: Any, prompt: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    stock, compiled = torch.compile, []

    def traced(call: Any, **settings: Any) -> Any:
        compiled.append(settings)
        return stock(call, backend="eager", **settings)

    monkeypatch.setattr(torch, "compile", traced)
    output, (found,) = ask(model, prompt, compile=True, return_segments=True)
    wanted, (plain,) = ask(model, prompt, return_segments=True)
    assert compiled == [{"dynamic": True}] * 2
    assert torch.equal(output, wanted)
    torch.testing.assert_close(found.scores, plain.scores)
    assert all(layer._compiled_call_impl is None for layer in model.model.layers)
    torch._dynamo.reset()
