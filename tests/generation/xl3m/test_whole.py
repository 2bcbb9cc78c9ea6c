"""A prompt that fits the window is answered by stock `generate`, whatever is said of its head and question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longctx.generation.xl3m import XL3M, xl3m
from hf_longctx.upstream.caches import generate_cache
from tests.generation.xl3m.test_prompt import chatting
from tests.generation.xl3m.test_xl3m import GREEDY, NEW, SMALL, WINDOW, After, Heard, Never, of_bytes
from tests.tiny import BOS, PAD, left_padded, text, tiny, tokenizer


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny(max_position_embeddings=WINDOW)


@pytest.fixture(scope="module")
def prompt() -> Tensor:
    return text(1, 6, seed=3)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    scores = zip(one.scores, other.scores, strict=True)
    return torch.equal(one.sequences, other.sequences) and all(torch.equal(a, b) for a, b in scores)


@pytest.mark.parametrize("length", [1, 2, 6, 63, 64, 65, WINDOW - NEW])
@pytest.mark.parametrize("settings", [xl3m, SMALL])
def test_a_prompt_of_any_length_that_fits(model: Any, length: int, settings: XL3M) -> None:
    ids = text(1, length, seed=length)
    assert torch.equal(model.generate(ids, custom_generate=settings, **GREEDY), model.generate(ids, **GREEDY))


WORDS = "w9 w9 w9 w9 w9 w9 w9 w9"


@pytest.mark.parametrize(
    "said",
    [
        {"question": 1},  # of which a score needs two
        {"question": 6},
        {"question": 64},
        {"question": 500},
        {"question": [9] * 8},
        {"question": torch.full((8,), 9)},
        {"question": "the prompt"},
        {"question": WORDS},
        {"question": [[9] * 8]},
        {"question": 4, "head": 2},
        {"question": 4, "head": 5},
        {"question": 4, "head": 500},
        {"head": 6},
        {"scores_file": "scores"},
        {"compile": True},
    ],
    ids=str,
)
def test_whatever_is_said_of_the_question(model: Any, prompt: Tensor, said: dict[str, Any], tmp_path: Path) -> None:
    said = dict(said)
    if "scores_file" in said:
        said["scores_file"] = tmp_path / "scores"
    if said.get("question") == "the prompt":
        said["question"] = tokenizer().decode(prompt[0])
    stock = model.generate(prompt, **GREEDY)
    for made in (tokenizer(), chatting()):
        output, (found,) = model.generate(
            prompt, custom_generate=SMALL, tokenizer=made, return_segments=True, **said, **GREEDY
        )
        assert torch.equal(output, stock)
        assert found.whole
        assert "fit" in str(found)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"question": 0}, "question=0: expected at least 1 token"),
        ({"question": 1.5}, "expected a whole number of tokens, words or ids"),
        ({"question": "w3"}, "needs the tokenizer"),
        ({"question": ["w3", "w4"]}, "2 questions for 1 prompts"),
        ({"head": -1}, "head=-1: expected a number of tokens"),
        ({"head": 1.5}, "head=1.5: expected a number of tokens"),
        ({"document": []}, "the text is empty"),
    ],
)
def test_what_no_prompt_could_have_is_still_refused(
    model: Any, prompt: Tensor, said: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(prompt, custom_generate=SMALL, **{"question": 4, **said}, **GREEDY)


def test_a_short_turn_of_a_chat(model: Any) -> None:
    made = chatting()
    turn = made.apply_chat_template(
        [{"role": "user", "content": "w20 w21"}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    stock = model.generate(**turn, **GREEDY)
    for given in ({}, {"tokenizer": made}, {"tokenizer": made, "question": "w20 w21"}):
        assert torch.equal(model.generate(**turn, custom_generate=xl3m, **given, **GREEDY), stock)


def test_a_chat_template_that_cannot_be_read_is_no_matter(model: Any, prompt: Tensor) -> None:
    made = tokenizer()
    for made.chat_template in ("w3 w4", "{{ raise_exception('one turn only') }}"):
        output = model.generate(prompt, custom_generate=xl3m, tokenizer=made, **GREEDY)
        assert torch.equal(output, model.generate(prompt, **GREEDY))


def test_the_beginning_of_text_alone(model: Any) -> None:
    ids = torch.tensor([[BOS]])
    assert torch.equal(model.generate(ids, custom_generate=xl3m, **GREEDY), model.generate(ids, **GREEDY))


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": True, "temperature": 0.7, "num_return_sequences": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"repetition_penalty": 1.3, "min_new_tokens": 3, "eos_token_id": 5, "pad_token_id": PAD},
        {"prompt_lookup_num_tokens": 2},
        {"use_cache": False},
        {"position_ids": torch.arange(20, 26)[None]},
        {"cache_implementation": "static"},
        {"max_new_tokens": None, "max_length": 20},
    ],
    ids=str,
)
def test_every_way_to_decode_is_stocks(model: Any, prompt: Tensor, how: dict[str, Any]) -> None:
    wanted = {**GREEDY, "return_dict_in_generate": True, "output_scores": True, **how}
    torch.manual_seed(1)
    stock = model.generate(prompt, **wanted)
    torch.manual_seed(1)
    assert same(model.generate(prompt, custom_generate=xl3m, **wanted), stock)


def test_an_assistant_model_drafts(model: Any, prompt: Tensor) -> None:
    drafts: list[Any] = []
    assistant = tiny(seed=1, max_position_embeddings=WINDOW)
    hook = assistant.register_forward_hook(lambda *call: drafts.append(call))
    output = model.generate(prompt, custom_generate=xl3m, assistant_model=assistant, **GREEDY)
    hook.remove()
    assert drafts
    assert torch.equal(output, model.generate(prompt, **GREEDY))


def test_streamer_processors_and_criteria_work_once_each(model: Any, prompt: Tensor) -> None:
    heard, lengths = [Heard(), Heard()], []
    for streamer, given in zip(heard, ({}, {"custom_generate": xl3m}), strict=True):
        never = Never(7)
        model.generate(
            prompt, streamer=streamer, logits_processor=[never], stopping_criteria=[After(3)], **given, **GREEDY
        )
        lengths.append(never.lengths)
    assert heard[0].put_ == heard[1].put_
    assert heard[1].ended
    assert lengths[0] == lengths[1] == [6, 7, 8]


def test_stop_strings_end_it(prompt: Tensor) -> None:
    model, made = tiny(max_position_embeddings=WINDOW, vocab_size=256), of_bytes()
    model.generation_config.pad_token_id = PAD
    plain = model.generate(prompt, **GREEDY)
    given = {"stop_strings": [made.decode(plain[0, 8])], "tokenizer": made, **GREEDY}
    stopped = model.generate(prompt, **given)
    assert stopped.shape[1] < plain.shape[1]
    assert torch.equal(model.generate(prompt, custom_generate=xl3m, **given), stopped)


def test_a_conversation_goes_on_in_its_cache_as_long_as_it_fits(model: Any, prompt: Tensor) -> None:
    stock, ours = DynamicCache(), DynamicCache()
    ids = prompt
    for turn in range(3):
        wanted = model.generate(ids, **generate_cache(stock), **GREEDY)
        assert torch.equal(model.generate(ids, custom_generate=xl3m, **generate_cache(ours), **GREEDY), wanted)
        assert ours.get_seq_length() == stock.get_seq_length() == wanted.shape[1] - 1
        ids = torch.cat([wanted, text(1, 4, seed=turn)], 1)
    with pytest.raises(ValueError, match="the cache holds 28 tokens"):
        model.generate(text(1, 200), custom_generate=SMALL, **generate_cache(ours), question=6, **GREEDY)


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"repetition_penalty": 1.7}], ids=str)
def test_a_batch_of_short_and_long_rows_equals_its_rows_alone(model: Any, how: dict[str, Any]) -> None:
    rows = [text(1, n, seed=n)[0] for n in (3, 300, 20, 1)]
    ids, mask = left_padded(rows)
    given = {**GREEDY, **how}
    together, found = model.generate(
        ids, attention_mask=mask, custom_generate=SMALL, question=8, return_segments=True, **given
    )
    assert [selection.whole for selection in found] == [True, False, True, True]
    for row, written in zip(rows, together[:, ids.shape[1] :], strict=True):
        alone = model.generate(row[None], custom_generate=SMALL, question=8, **given)
        assert torch.equal(alone[0, len(row) :], written)
        if len(row) < WINDOW:
            assert torch.equal(model.generate(row[None], **given)[0, len(row) :], written)


def test_a_padded_batch_that_fits_is_stocks(model: Any) -> None:
    ids, mask = left_padded([text(1, n, seed=n)[0] for n in (3, 70, 20)])
    ids, mask = (torch.nn.functional.pad(batch, (30, 0), value=PAD) for batch in (ids, mask))
    for how in ({}, {"num_beams": 2, "num_return_sequences": 2}):
        given = {"attention_mask": mask, "return_dict_in_generate": True, "output_scores": True, **GREEDY, **how}
        assert same(model.generate(ids, custom_generate=xl3m, **given), model.generate(ids, **given))


def test_a_document_that_fits_is_read_whole_with_any_question(model: Any, prompt: Tensor) -> None:
    """A question of one token too, since nothing is scored."""
    for question in (1, 4):
        output, (found,) = model.generate(
            prompt, custom_generate=SMALL, document=text(1, 20)[0], head=2, question=question, return_segments=True,
            **GREEDY,
        )  # fmt: skip
        parts = [prompt[:, :2], text(1, 20), prompt[:, -question:]]
        assert torch.equal(output[:, 6:], model.generate(torch.cat(parts, 1), **GREEDY)[:, 22 + question :])
        assert found.whole
