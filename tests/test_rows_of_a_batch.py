"""Rows of a batch that wait, end early, or are hidden by a later mask: each as alone, or as the stock model does.

A cached step belongs in every check: rings, which single tokens are read in, are where these went wrong.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import CodeLookup, LMInfinite, PositionFree, StreamingLLM
from hf_longctx.cache import SinkWindowLayer
from hf_longctx.upstream.caches import cache_out, generate_cache, given_cache
from tests.contract.registry import close, differs, same
from tests.tiny import FAMILIES, MORE_FAMILIES, left_padded, logits_of, text, tiny

METHODS = {
    "lm_infinite": LMInfinite(n_global=2, n_local=6),
    "top_k": LMInfinite(n_global=2, n_local=6, top_k=3, top_k_from_layer=1),
    "code_lookup": CodeLookup(n_global=2, n_local=6, top_k=3, shortlist=4),
    "streaming_llm": StreamingLLM(n_sink=2, window=6),
    "position_free": PositionFree(),
}
every = pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
each = pytest.mark.parametrize(
    ("method", "family"),
    [
        pytest.param(method, family, id=f"{name}-{family}")
        for name, method in METHODS.items()
        # its cache is that of the others, and a store, which no family changes
        for family in (["llama"] if name == "code_lookup" else [*FAMILIES, *MORE_FAMILIES])
    ],
)
SETTINGS = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}


def model_of(family: str) -> Any:
    # Gemma 3's own sliding layers, which stay stock, count padding as text: wider than these texts, they do not matter
    return tiny(family, **({"sliding_window": 512} if family == "gemma3" else {}))


def rows() -> list[Tensor]:
    return [text(1, length, seed=length)[0] for length in (9, 17, 26)]


def prefilled(model: Any) -> tuple[DynamicCache, Tensor]:
    """The cache of the left-padded rows, at the positions that `generate` counts, and their mask."""
    ids, mask = left_padded(rows())
    cache, pos = DynamicCache(config=model.config), (mask.cumsum(1) - 1).clamp(min=0)
    logits_of(model, ids, attention_mask=mask, position_ids=pos, **given_cache(model, cache))
    return cache, mask


def steps(model: Any, cache: Any, mask: Tensor, columns: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Read single tokens: the logits (B, n, V), and the mask with their columns."""
    out = []
    for t in range(columns.shape[1]):
        mask = torch.cat([mask, real[:, t : t + 1]], 1)
        pos = (mask.cumsum(1) - 1)[:, -1:].clamp(min=0)
        ids = columns[:, t : t + 1]
        out.append(logits_of(model, ids, attention_mask=mask, position_ids=pos, **given_cache(model, cache)))
    return torch.cat(out, 1), mask


@pytest.mark.floor
@each
def test_a_row_that_waits_while_others_read_single_tokens_gives_what_it_gives_alone(method: Any, family: str) -> None:
    model = model_of(family)
    method.apply(model)
    cache, mask = prefilled(model)
    new = text(3, 24, seed=5)
    real = torch.ones(3, 24, dtype=torch.long)
    real[0, 3:14] = 0  # waits for longer than the window is wide
    real[1, ::2] = 0
    real[2, 20:] = 0  # has ended
    got, mask = steps(model, cache, mask, new, real)
    bounded = [layer for layer in cache.layers if isinstance(layer, SinkWindowLayer)]
    assert all(layer.ring is not None for layer in bounded)
    for b, row in enumerate(rows()):
        alone = logits_of(model, torch.cat([row, new[b][real[b].bool()]])[None], use_cache=False)[0, len(row) :]
        close(got[b][real[b].bool()], alone, f"row {b}")
    # a chunk after rings, and then single tokens again
    chunk = text(3, 5, seed=6)
    mask = torch.cat([mask, torch.ones(3, 5, dtype=torch.long)], 1)
    pos = (mask.cumsum(1) - 1)[:, -5:]
    after = logits_of(model, chunk, attention_mask=mask, position_ids=pos, **given_cache(model, cache))
    last, _ = steps(model, cache, mask, new[:, :2], torch.ones(3, 2, dtype=torch.long))
    for b, row in enumerate(rows()):
        whole = torch.cat([row, new[b][real[b].bool()], chunk[b], new[b, :2]])[None]
        close(torch.cat([after, last], 1)[b], logits_of(model, whole, use_cache=False)[0, -7:], f"row {b}, later")


@each
def test_waiting_rows_may_be_reordered_as_beams_are(method: Any, family: str) -> None:
    model = model_of(family)
    method.apply(model)
    (cache, mask), order = prefilled(model), torch.tensor([2, 0, 0])
    new = text(3, 12, seed=5)
    real = torch.ones(3, 12, dtype=torch.long)
    real[0, 2:9] = 0
    _, mask = steps(model, cache, mask, new, real)
    cache.reorder_cache(order)
    got, _ = steps(model, cache, mask[order], text(3, 4, seed=7), torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [1] * 4]))
    alone = [torch.cat([rows()[b], new[b][real[b].bool()]]) for b in order.tolist()]
    more = text(3, 4, seed=7)
    for b, kept in ((0, [0, 1, 2, 3]), (1, [1, 3]), (2, [0, 1, 2, 3])):
        whole = torch.cat([alone[b], more[b, kept]])[None]
        close(got[b, kept], logits_of(model, whole, use_cache=False)[0, -len(kept) :], f"beam {b}")


@every
@pytest.mark.parametrize("method", [PositionFree(), LMInfinite(n_local=512), StreamingLLM(window=500)], ids=repr)
def test_a_mask_over_cached_tokens_counts_as_it_does_for_the_stock_model(method: Any, family: str) -> None:
    model, ids = model_of(family), text(2, 30)
    generator = torch.Generator().manual_seed(1)

    def run(given: bool) -> Tensor:
        cache, out = DynamicCache(config=model.config), []
        for start, stop in ((0, 20), (20, 24), (24, 25), (25, 26), (26, 30)):
            mask = (torch.rand(2, stop, generator=generator) < 0.7).long()  # hides, and shows again
            mask[:, :2] = mask[:, start:] = 1
            pos = {"position_ids": torch.arange(start, stop)[None]} if given else {}
            out.append(logits_of(model, ids[:, start:stop], attention_mask=mask, **pos, **given_cache(model, cache)))
        return torch.cat(out, 1)

    for given in (True, False):
        wanted = run(given)
        generator.manual_seed(1)
        with method.on(model):
            close(run(given), wanted)
        generator.manual_seed(2)
        differs(run(given), wanted)
        generator.manual_seed(1)


@each
def test_a_whole_prompts_mask_may_come_with_each_of_its_chunks(method: Any, family: str) -> None:
    model = model_of(family)
    ids, mask = left_padded(rows())
    method.apply(model)
    wanted = logits_of(model, ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    cache, out = DynamicCache(config=model.config), []
    for start in (0, 5, 10, 15, 20, 24, 25):
        stop = {20: 24, 24: 25, 25: 26}.get(start, start + 5)
        pos = (mask.cumsum(1) - 1).clamp(min=0)[:, start:stop]
        chunk = ids[:, start:stop]
        out.append(logits_of(model, chunk, attention_mask=mask, position_ids=pos, **given_cache(model, cache)))
    close(torch.cat(out, 1)[mask.bool()], wanted[mask.bool()])


@each
@pytest.mark.parametrize("beams", [1, 2])
def test_rows_that_ended_early_go_on_in_the_next_turn(method: Any, family: str, beams: int) -> None:
    model = model_of(family)
    method.apply(model)
    ids, mask = left_padded(rows())
    free = model.generate(ids, attention_mask=mask, max_new_tokens=14, **SETTINGS)
    end = free.sequences[0, ids.shape[1] + 1].item()  # row 0 ends after two tokens, others later or not at all
    turn = model.generate(ids, attention_mask=mask, max_new_tokens=14, eos_token_id=end, **SETTINGS)
    new = turn.sequences[:, ids.shape[1] :]
    ended = (new == end).long().cumsum(1)
    real = ((ended == 0) | ((new == end) & (ended.cumsum(1) == 1))).long()
    assert (real == 0).sum() > 8, "a row ended early, by more than the window"
    questions, asked = left_padded([text(1, length, seed=60 + length)[0] for length in (3, 7, 5)])
    history = torch.cat([turn.sequences, questions], 1)
    seen = torch.cat([mask, real, asked], 1)
    cache = cache_out(turn)
    if beams > 1:
        cache.batch_repeat_interleave(beams)
    settings = {**SETTINGS, "num_beams": beams, "max_new_tokens": 5}
    together = model.generate(history, attention_mask=seen, **generate_cache(cache), **settings)
    for b in range(3):
        row = history[b][seen[b].bool()][None]
        alone = model.generate(row, **settings)
        same(together.sequences[b, -5:], alone.sequences[0, -5:], f"row {b}")
        if beams == 1:
            close(torch.stack(together.logits)[:, b], torch.stack(alone.logits)[:, 0], f"row {b}")


@pytest.mark.parametrize("method", [METHODS["lm_infinite"], METHODS["streaming_llm"]], ids=repr)
def test_a_window_that_lost_what_a_row_needs_again_says_so_in_a_plain_forward(method: Any) -> None:
    model, ids = tiny("llama"), text(2, 40)
    method.apply(model)
    cache, mask = DynamicCache(config=model.config), torch.ones(2, 30, dtype=torch.long)
    logits_of(model, ids[:, :30], **given_cache(model, cache))
    mask[1, 12:] = 0
    both = torch.cat([mask, torch.ones(2, 4, dtype=torch.long)], 1)
    pos = (both.cumsum(1) - 1)[:, -4:]
    with pytest.raises(ValueError, match=r"row 1 continues at a position before some .* Read its text again"):
        logits_of(model, ids[:, 30:34], attention_mask=both, position_ids=pos, **given_cache(model, cache))
    with pytest.raises(ValueError, match="Give the ids of the whole text"):
        model.generate(ids[:, 30:34], attention_mask=both, **generate_cache(cache), max_new_tokens=2)


@every
@pytest.mark.parametrize("method", [PositionFree(), LMInfinite(n_local=512), StreamingLLM(window=500)], ids=repr)
@pytest.mark.parametrize("given", ["ones", None])
def test_tokens_that_a_mask_hid_are_seen_again_without_it(method: Any, family: str, given: str | None) -> None:
    model, ids = model_of(family), text(2, 30)

    def run() -> Tensor:
        cache, out = DynamicCache(config=model.config), []
        for start, stop in ((0, 20), (20, 21), (21, 22), (22, 26), (26, 30)):
            mask = torch.ones(2, stop, dtype=torch.long)
            mask[:, 3:9] = int(start not in (20, 22))  # hidden, seen, hidden, seen
            asked = {"attention_mask": mask} if given or not mask.all() else {}
            out.append(logits_of(model, ids[:, start:stop], **asked, **given_cache(model, cache)))
        return torch.cat(out, 1)

    wanted = run()
    with method.on(model):
        close(run(), wanted)


@pytest.mark.parametrize("room", [4, 1024])
def test_a_window_keeps_tokens_that_a_mask_hides_for_a_while(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_longctx.cache.rolling.ROOM", room)
    stock, model, ids = tiny("mistral", sliding_window=6), tiny("mistral"), text(2, 60)  # the same weights
    LMInfinite(n_global=0, n_local=6).apply(model)
    lengths = (5, 1, 1, 9, 1, 1, 1, 1, 2, 1, 1, 7, 1, 1, 1, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    for seed in range(4):
        theirs, ours, start = DynamicCache(), DynamicCache(config=model.config), 0
        for i, length in enumerate(lengths):
            stop = start + length
            mask = (torch.rand(2, stop, generator=generator) < (0.7 if (i + seed) % 3 else 1.0)).long()
            mask[:, start:] = 1
            new = ids[:, start:stop]
            wanted = logits_of(stock, new, attention_mask=mask, **given_cache(stock, theirs))
            close(logits_of(model, new, attention_mask=mask, **given_cache(model, ours)), wanted, f"{start} to {stop}")
            start = stop


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_row_goes_on_earlier_by_single_tokens_from_the_first(method: Any) -> None:
    """What is hidden by then stands in the middle of a ring's columns, where it would cost the window its oldest."""
    model, ids = tiny("llama"), text(1, 60)[0]
    method.apply(model)
    cache, mask = DynamicCache(config=model.config), torch.ones(1, 12, dtype=torch.long)
    logits_of(model, ids[None, :12], **given_cache(model, cache))
    mask[0, 8:] = 0  # ended after 8 tokens; a window of 6 has 6 to 11
    history, seen = ids[None, :13], torch.cat([mask, torch.ones(1, 1, dtype=torch.long)], 1)
    settings = {**SETTINGS, "max_new_tokens": 12}
    turn = model.generate(history, attention_mask=seen, **generate_cache(cache), **settings)
    alone = model.generate(history[seen.bool()][None], **settings)
    same(turn.sequences[0, -12:], alone.sequences[0, -12:])
    close(torch.stack(turn.logits), torch.stack(alone.logits))


@pytest.mark.parametrize("method", [LMInfinite(n_global=2, n_local=20), StreamingLLM(n_sink=2, window=20)], ids=repr)
def test_a_wide_window_keeps_its_oldest_where_a_row_goes_on_earlier(method: Any) -> None:
    model, ids = tiny("llama"), text(1, 60)[0]
    method.apply(model)
    cache, mask = DynamicCache(config=model.config), torch.ones(1, 16, dtype=torch.long)
    logits_of(model, ids[None, :16], **given_cache(model, cache))
    mask[0, 8:] = 0
    seen = torch.cat([mask, torch.ones(1, 1, dtype=torch.long)], 1)
    settings = {**SETTINGS, "max_new_tokens": 20}
    turn = model.generate(ids[None, :17], attention_mask=seen, **generate_cache(cache), **settings)
    alone = model.generate(torch.cat([ids[:8], ids[16:17]])[None], **settings)
    same(turn.sequences[0, -20:], alone.sequences[0, -20:])
    close(torch.stack(turn.logits), torch.stack(alone.logits))


@pytest.mark.parametrize("method", [LMInfinite(n_global=2, n_local=1), StreamingLLM(n_sink=2, window=1)], ids=repr)
def test_a_window_of_one_token_misses_nothing_where_a_row_goes_on_earlier(method: Any) -> None:
    model, ids = tiny("llama"), text(1, 20)
    method.apply(model)
    cache, mask = DynamicCache(config=model.config), torch.ones(1, 15, dtype=torch.long)
    logits_of(model, ids[:, :12], **given_cache(model, cache))
    mask[0, 8:12] = 0
    pos = (mask.cumsum(1) - 1)[:, 12:]
    got = logits_of(model, ids[:, 12:15], attention_mask=mask, position_ids=pos, **given_cache(model, cache))
    close(got, logits_of(model, ids[:, :15][mask.bool()][None], use_cache=False)[:, -3:])


@pytest.mark.parametrize("method", [METHODS["lm_infinite"], METHODS["streaming_llm"]], ids=repr)
@pytest.mark.parametrize("new", [1, 3])
def test_a_mask_that_hides_first_tokens_alone_is_not_passed_over(method: Any, new: int) -> None:
    """They have left the window, whose tokens are all shown: those that would be first instead are gone."""
    model, ids = tiny("llama"), text(2, 33)
    method.apply(model)
    cache, mask = DynamicCache(config=model.config), torch.ones(2, 30 + new, dtype=torch.long)
    logits_of(model, ids[:, :30], **given_cache(model, cache))
    mask[1, 0] = 0
    with pytest.raises(ValueError, match=r"or the first tokens, of .* for others that attention_mask now hides"):
        logits_of(model, ids[:, 30 : 30 + new], attention_mask=mask, **given_cache(model, cache))
