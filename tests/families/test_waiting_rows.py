"""Rows that wait, in models that carry a state: each gives what the stock model gives for it alone, or is refused."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import LMInfinite, PositionFree, StreamingLLM
from hf_longctx.cache.recurrent import takes_positions
from hf_longctx.upstream.caches import cache_out, generate_cache, given_cache
from tests.contract.registry import differs, same
from tests.hybrids import ANEW, HYBRIDS, hybrid
from tests.tiny import left_padded, logits_of, text

every = pytest.mark.parametrize("name", [name for name in HYBRIDS if name not in ANEW])
WIDE = LMInfinite(n_local=512)  # sees all of these texts, as the stock model does
NARROW = {"lm_infinite": LMInfinite(n_global=2, n_local=6), "streaming_llm": StreamingLLM(n_sink=2, window=6)}
NARROW["position_free"] = PositionFree()  # type: ignore[assignment]
LENGTHS = 12, 7, 9
# of the forwards after the prompt, and whether each row reads or waits; prompts are padded on the left
TURNS = [(1, (1, 0, 1)), (1, (1, 0, 1)), (5, (0, 1, 1)), (1, (0, 0, 1)), (1, (1, 1, 1)), (4, (1, 1, 0)), (2, (1, 1, 1))]


SCAN: dict[str, float] = {"atol": 1e-3, "rtol": 1e-3}  # fp32: a recurrent layer's scan in other blocks


def served(name: str, method: Any) -> Any:
    model = hybrid(name)
    try:
        method.apply(model)
    except ValueError as error:
        pytest.skip(str(error))
    return model


def read(model: Any, cache: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """The logits of the last tokens `ids` (B, L) of rows with a mask (B, T) of all so far, at their own positions."""
    pos = (mask.cumsum(1) - 1)[:, -ids.shape[1] :].clamp(min=0)
    place = {"position_ids": pos} if takes_positions(model) else {}
    return logits_of(model, ids, attention_mask=mask, **place, **given_cache(model, cache))


def prompts() -> list[Tensor]:
    return [text(1, length, seed=length)[0] for length in LENGTHS]


def turns(order: list[tuple[int, tuple[int, ...]]] = TURNS) -> tuple[Tensor, Tensor, list[int]]:
    """Tokens (B, T) of prompts and turns, their mask, and the columns at which forwards end."""
    ids, mask = left_padded(prompts())
    ends = [ids.shape[1]]
    for i, (length, reads) in enumerate(order):
        ids = torch.cat([ids, text(3, length, seed=40 + i)], 1)
        mask = torch.cat([mask, torch.tensor(reads)[:, None].expand(-1, length)], 1)
        ends.append(ids.shape[1])
    return ids, mask, ends


def in_turns(model: Any, cache: Any, ids: Tensor, mask: Tensor, ends: list[int]) -> Tensor:
    parts = [read(model, cache, ids[:, start:stop], mask[:, :stop]) for start, stop in pairwise([0, *ends])]
    return torch.cat(parts, 1)


def alone(model: Any, row: Tensor, more: int = 0) -> Tensor:
    return logits_of(model, row[None], use_cache=False)[0, -more:]


def check_rows(got: Tensor, truth: Any, ids: Tensor, mask: Tensor) -> None:
    for b, row in enumerate(mask.bool()):
        torch.testing.assert_close(got[b][row], alone(truth, ids[b][row]), **SCAN)


@pytest.mark.floor
@every
def test_rows_that_wait_give_what_the_stock_model_gives_for_each_alone(name: str) -> None:
    stock, model = hybrid(name), served(name, WIDE)
    ids, mask, ends = turns()
    check_rows(in_turns(model, DynamicCache(config=model.config), ids, mask, ends), stock, ids, mask)
    theirs = in_turns(stock, DynamicCache(config=stock.config), ids, mask, ends)
    differs(theirs[0, -1], alone(stock, ids[0][mask[0].bool()])[-1])  # when this fails, stock rows may wait too


@pytest.mark.parametrize("method", NARROW)
@pytest.mark.parametrize("name", ["falcon_h1", "bamba"])
def test_rows_that_wait_under_a_method_give_what_each_gives_alone(name: str, method: str) -> None:
    model = served(name, NARROW[method])
    ids, mask, ends = turns()
    check_rows(in_turns(model, DynamicCache(config=model.config), ids, mask, ends), model, ids, mask)


@every
def test_the_first_tokens_of_a_text_may_be_read_one_by_one_with_padding_before(name: str) -> None:
    stock, model = hybrid(name), served(name, WIDE)
    ids, mask = left_padded(prompts())
    got = in_turns(model, DynamicCache(config=model.config), ids, mask, list(range(1, ids.shape[1] + 1)))
    check_rows(got, stock, ids, mask)


@every
@pytest.mark.parametrize("given", [True, False])
def test_a_whole_prompts_mask_may_come_with_each_chunk(name: str, given: bool) -> None:
    stock, model = hybrid(name), served(name, WIDE)
    ids, mask = left_padded(prompts())
    cache, parts, pos = DynamicCache(config=model.config), [], (mask.cumsum(1) - 1).clamp(min=0)
    for start, stop in ((0, 4), (4, 8), (8, 9), (9, 12)):
        place = {"position_ids": pos[:, start:stop]} if takes_positions(model) else {}
        shown = mask if given else mask[:, :stop]
        parts.append(logits_of(model, ids[:, start:stop], attention_mask=shown, **place, **given_cache(model, cache)))
    check_rows(torch.cat(parts, 1), stock, ids, mask)


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("method", NARROW)
@pytest.mark.parametrize("name", ["falcon_h1", "zamba2"])
def test_waiting_rows_may_be_reordered_as_beams_are(name: str, method: str, copied: bool) -> None:
    model = served(name, NARROW[method])
    ids, mask, ends = turns(TURNS[:2])
    cache: Any = DynamicCache(config=model.config)
    in_turns(model, cache, ids, mask, ends)
    order = torch.tensor([1, 1, 0])
    cache = copy.deepcopy(cache) if copied else cache
    cache.reorder_cache(order)
    ids, mask = ids[order], mask[order]
    for i, reads in enumerate([(0, 1, 1), (1, 1, 0), (1, 1, 1)]):
        ids = torch.cat([ids, text(3, 1, seed=70 + i)], 1)
        mask = torch.cat([mask, torch.tensor(reads)[:, None]], 1)
        got = read(model, cache, ids[:, -1:], mask)
    for b, row in enumerate(mask.bool()):
        torch.testing.assert_close(got[b, -1], alone(model, ids[b][row])[-1], **SCAN)


@every
def test_right_padded_rows_are_read_and_do_not_go_on(name: str) -> None:
    stock, model = hybrid(name), served(name, WIDE)
    rows = prompts()
    ids, mask = (x.flip(1) for x in left_padded([row.flip(0) for row in rows]))
    cache = DynamicCache(config=model.config)
    check_rows(read(model, cache, ids, mask), stock, ids, mask)
    more = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], 1)
    for hidden in (mask, torch.ones_like(mask)):  # or shown, which the states have not read either
        more = torch.cat([hidden, torch.ones(3, 1, dtype=torch.long)], 1)
        with pytest.raises(ValueError, match=r"row 1 goes on, .* states of .* padding behind its text"):
            read(model, cache, text(3, 1), more)
    more[1:, -1] = 0  # the longest row may
    more[:, :-1] = mask
    got = read(model, cache, text(3, 1), more)
    torch.testing.assert_close(got[0, -1], alone(stock, torch.cat([rows[0], text(3, 1)[0]]))[-1], **SCAN)


@every
@pytest.mark.parametrize("cached", [True, False])
def test_tokens_hidden_in_the_middle_of_a_forward_are_refused(name: str, cached: bool) -> None:
    model, ids, mask = served(name, WIDE), text(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[1, 5:7] = 0
    with pytest.raises(ValueError, match=r"row 1: attention_mask hides tokens after its first") as error:
        logits_of(model, ids, attention_mask=mask, use_cache=cached)
    assert "each row by itself" in str(error.value)


@every
def test_what_is_refused_leaves_the_cache_as_it_was(name: str) -> None:
    stock, model = hybrid(name), served(name, WIDE)
    cache, ids, new = DynamicCache(config=model.config), text(2, 12), text(2, 5, seed=3)
    ones = torch.ones(2, 17, dtype=torch.long)
    read(model, cache, ids, ones[:, :12])
    leading, hidden = ones.clone(), ones.clone()
    leading[1, 12:14] = 0  # a question that is padded on the left
    hidden[1, 8:12] = 0  # written after a row's end
    with pytest.raises(ValueError, match="row 1: attention_mask hides tokens after its first"):
        read(model, cache, new, leading)
    with pytest.raises(ValueError, match="row 1 goes on"):
        read(model, cache, new, hidden)
    got = read(model, cache, new, ones)
    for b, row in enumerate(torch.cat([ids, new], 1)):
        torch.testing.assert_close(got[b], alone(stock, row, 5), **SCAN)


@pytest.mark.parametrize("method", NARROW)
@pytest.mark.parametrize("name", ["falcon_h1", "qwen3_next"])
def test_generate_in_turns(name: str, method: str) -> None:
    """The first turn of a padded batch is as alone; a row that ended early then is refused by name."""
    model = served(name, NARROW[method])
    ids, mask = left_padded(prompts())
    settings = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 6, "return_dict_in_generate": True}
    turn = model.generate(ids, attention_mask=mask, **settings)
    for b, row in enumerate(prompts()):
        same(turn.sequences[b, -6:], model.generate(row[None], **settings).sequences[0, -6:])
    shown = torch.cat([mask, torch.ones(3, 6, dtype=torch.long)], 1)
    shown[2, -3:] = 0
    both = torch.cat([turn.sequences, text(3, 2)], 1)
    shown = torch.cat([shown, torch.ones(3, 2, dtype=torch.long)], 1)
    with pytest.raises(ValueError, match=r"row 2 goes on|row 2: attention_mask hides"):
        model.generate(both, attention_mask=shown, **generate_cache(cache_out(turn)), **settings)


@pytest.mark.parametrize("name", ["bamba", "lfm2"])
def test_gradients_of_rows_that_wait_are_those_of_rows_alone(name: str) -> None:
    stock, model = hybrid(name), served(name, WIDE)
    ids, mask = text(2, 10), torch.ones(2, 10, dtype=torch.long)
    mask[1, 6:8] = 0
    cache = DynamicCache(config=model.config)
    with torch.enable_grad():
        for start, stop in ((0, 6), (6, 8), (8, 10)):
            pos = (mask.cumsum(1) - 1)[:, start:stop]
            more = {"attention_mask": mask[:, :stop], "position_ids": pos, **given_cache(model, cache)}
            logits = model(ids[:, start:stop], use_cache=True, **more).logits
        (logits[:, -1] ** 2).sum().backward()
        for row, real in zip(ids, mask.bool(), strict=True):
            (stock(row[real][None], use_cache=False).logits[:, -1] ** 2).sum().backward()
    for (of, got), wanted in zip(model.named_parameters(), stock.parameters(), strict=True):
        assert wanted.grad is not None, of
        scale = wanted.grad.abs().max().clamp(min=1e-6)
        torch.testing.assert_close(got.grad / scale, wanted.grad / scale, **SCAN)


def test_a_compiled_model_reads_padded_rows_and_stops_where_one_waits() -> None:
    torch._dynamo.reset()  # where others have compiled as often as torch allows, nothing is, and no row need stop
    model = served("falcon_h1", WIDE)
    rows, cache = prompts(), DynamicCache(config=model.config)
    ids, mask = left_padded(rows)
    compiled: Any = torch.compile(model, backend="eager")
    more, ones = text(3, 2, seed=8), torch.ones(3, 1, dtype=torch.long)
    read(compiled, cache, ids, mask)
    got = read(compiled, cache, more[:, :1], torch.cat([mask, ones], 1))
    for b, row in enumerate(rows):
        torch.testing.assert_close(got[b, -1], alone(model, torch.cat([row, more[b, :1]]))[-1], **SCAN)
    ones[1] = 0
    with pytest.raises(RuntimeError, match="In a compiled model no row can wait"):
        read(compiled, cache, more[:, 1:], torch.cat([mask, ones], 1)[:, [*range(mask.shape[1]), 0, -1]])
    torch._dynamo.reset()
