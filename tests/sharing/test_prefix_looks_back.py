"""What looks back over the tokens, behind a shared prefix with questions of unequal length: as stock's padded batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    WatermarkingConfig,
)

from hf_longctx import shared_prefix
from tests.contract.registry import close, fingerprint, same
from tests.sharing.prefixes import DOCUMENT, GREEDY, LOGITS
from tests.tiny import EOS, FAMILIES, MORE_FAMILIES, text, tiny

QUESTIONS = [text(1, n, seed=n)[0] for n in (5, 1, 7, 2)]
LAST, FIRST = int(DOCUMENT[-1]), int(QUESTIONS[1][0])  # neighbours, with the padding between them
SAME_ALONE: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "a reward": {"repetition_penalty": 0.5},
    "bad_words": {"bad_words_ids": [[LAST, FIRST, word] for word in range(3, 30)]},
    "sequence_bias": {"sequence_bias": [[[LAST, FIRST, word], 20.0] for word in range(3, 9)]},
    "min_new_tokens": {"min_new_tokens": 5, "eos_token_id": list(range(20, 40))},
    "exponential decay": {"exponential_decay_length_penalty": (2, 1.5), "eos_token_id": 9},
    "watermarking": {"watermarking_config": WatermarkingConfig(context_width=3, seeding_scheme="selfhash")},
    "samples": {"repetition_penalty": 1.7, "do_sample": True, "top_k": 5},
    "beams": {"repetition_penalty": 1.7, "num_beams": 3, "eos_token_id": EOS},
    "sequences": {"repetition_penalty": 1.7, "do_sample": True, "num_return_sequences": 3},
}
# what stock says of a padded batch is not what it says of each row: padding has a length and n-grams of its own
SAME_PADDED: dict[str, dict[str, Any]] = {
    "together": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 4},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "no_repeat_ngram_size of one": {"no_repeat_ngram_size": 1},
    "min_length": {"min_length": 36, "eos_token_id": list(range(20, 40))},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.7},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 2},
    "beams without n-grams": {"no_repeat_ngram_size": 2, "num_beams": 3, "eos_token_id": EOS},
}
SETTINGS = {**SAME_ALONE, **SAME_PADDED}


def padded(rows: list[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.stack([torch.cat([torch.full((width - len(row),), pad), row]) for row in rows])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


def stock_of(model: Any, questions: list[Tensor], pad: int, **settings: Any) -> Any:
    """Document and question in every row of a batch, padded in front."""
    ids, mask = padded([torch.cat([DOCUMENT, question]) for question in questions], pad)
    torch.manual_seed(3)
    out = model.generate(ids, attention_mask=mask, pad_token_id=pad, **{**GREEDY, **settings})
    return out if not isinstance(out, Tensor) else out[:, ids.shape[1] :]


def pads(model: Any) -> list[int]:
    """The padding token of the settings, and words that the model likes to write, as padding too."""
    written = stock_of(model, QUESTIONS, 0)
    return [0, int(written[1, 0]), int(written[3, 2])]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_processors_give_what_they_give_in_a_padded_batch(family: str, name: str) -> None:
    model, settings = tiny(family), {**GREEDY, **SETTINGS[name]}
    before = fingerprint(model)
    for pad in pads(model):
        ids, mask = padded(QUESTIONS, pad)
        with shared_prefix(model, DOCUMENT) as prefix:
            torch.manual_seed(3)
            out = prefix.generate(ids, attention_mask=mask, pad_token_id=pad, **settings)
        expected = stock_of(model, QUESTIONS, pad, **settings)
        same(out[:, ids.shape[1] :][:, : expected.shape[1]], expected, f"padded with {pad}")
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", [n for n in SAME_ALONE if not SAME_ALONE[n].get("do_sample")])
@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_processors_give_each_row_what_it_has_alone(family: str, name: str) -> None:
    model, settings = tiny(family), {**GREEDY, **SETTINGS[name]}
    if "num_beams" not in settings:
        settings |= {"return_dict_in_generate": True, "output_scores": True}
    pad = pads(model)[1]
    ids, mask = padded(QUESTIONS, pad)
    with shared_prefix(model, DOCUMENT) as prefix:
        out = prefix.generate(ids, attention_mask=mask, pad_token_id=pad, **settings)
    for i, question in enumerate(QUESTIONS):
        alone = stock_of(model, [question], pad, **settings)
        if isinstance(out, Tensor):
            same(out[i, ids.shape[1] :][: alone.shape[1]], alone[0], f"row {i}")
            continue
        written = alone.sequences[0, len(DOCUMENT) + len(question) :]
        same(out.sequences[i, ids.shape[1] :][: len(written)], written, f"row {i}")
        for mine, yours in zip(out.scores, alone.scores, strict=False):
            close(mine[i], yours[0], f"scores of row {i}")


class Looks(LogitsProcessor):
    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append(input_ids.clone())
        return scores


class Ends(StoppingCriteria):
    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        self.seen.append(input_ids.clone())
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_the_callers_own_see_the_ids_of_a_padded_batch(how: dict[str, Any]) -> None:
    model = tiny()
    seen = []
    for ask in (stock_of, None):
        looks, ends, allowed = Looks(), Ends(), []

        def allow(row: int, ids: Tensor, allowed: list[Any] = allowed) -> list[int]:
            allowed.append((row, ids.tolist()))
            return list(range(60))

        own = {
            "logits_processor": LogitsProcessorList([looks]),
            "stopping_criteria": StoppingCriteriaList([ends]),
            "prefix_allowed_tokens_fn": allow,
            **how,
        }
        if ask is not None:
            ask(model, QUESTIONS, 0, **own)
        else:
            ids, mask = padded(QUESTIONS, 0)
            with shared_prefix(model, DOCUMENT) as prefix:
                torch.manual_seed(3)
                prefix.generate(ids, attention_mask=mask, pad_token_id=0, **{**GREEDY, **own})
        seen.append((looks.seen, ends.seen, allowed))
    (stock, stock_ends, stock_allowed), (ours, our_ends, our_allowed) = seen
    assert len(stock) == len(ours)
    for mine, yours in zip(ours + our_ends, stock + stock_ends, strict=True):
        same(mine, yours)
    assert our_allowed == stock_allowed


def test_turns_with_padding_between_them_look_back_as_rows_alone() -> None:
    model, more = tiny(), text(4, 4, seed=9)
    settings = {**GREEDY, "repetition_penalty": 1.5}
    pad = pads(model)[1]
    ids, mask = padded(QUESTIONS, pad)
    with shared_prefix(model, DOCUMENT) as prefix:
        cache = prefix.cache()
        first = prefix.generate(ids, attention_mask=mask, past_key_values=cache, pad_token_id=pad, **settings)
        said = torch.cat([first, more], 1)
        both = torch.cat([mask, torch.ones(4, said.shape[1] - ids.shape[1]).long()], 1)
        said[1, first.shape[1]], both[1, first.shape[1]] = pad, 0  # a question a token shorter than the others
        second = prefix.generate(said, attention_mask=both, past_key_values=cache, pad_token_id=pad, **settings)
    for i in range(4):
        row = torch.cat([DOCUMENT, said[i][both[i].bool()]])[None]
        alone = model.generate(row, attention_mask=torch.ones_like(row), pad_token_id=pad, **settings)[
            0, row.shape[1] :
        ]
        same(second[i, said.shape[1] :], alone, f"row {i}")


def test_an_error_in_a_processor_leaves_nothing() -> None:
    class Oops(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            raise RuntimeError("oops")

    model = tiny()
    before = fingerprint(model)
    ids, mask = padded(QUESTIONS, 0)
    with shared_prefix(model, DOCUMENT) as prefix:
        inside = fingerprint(model)
        with pytest.raises(RuntimeError, match="oops"):
            prefix.generate(ids, attention_mask=mask, logits_processor=LogitsProcessorList([Oops()]), **GREEDY)
        assert fingerprint(model) == inside
        out = prefix.generate(ids, attention_mask=mask, pad_token_id=0, repetition_penalty=1.7, **GREEDY, **LOGITS)
    same(out.sequences[:, ids.shape[1] :], stock_of(model, QUESTIONS, 0, repetition_penalty=1.7))
    assert fingerprint(model) == before
