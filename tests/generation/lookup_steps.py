"""Tokens of look-ups kept by counters and addresses, and replayed: run where Triton's interpreter is, on the CPU.

A page has 8 slots here, and tables of addresses have one entry to spare.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longctx import CodeLookup, LMInfinite
from hf_longctx.cache import addresses, growing
from hf_longctx.generation.cuda_graph import graph_forward
from hf_longctx.ops import pages
from hf_longctx.ops.kernels import ring, turns
from tests.tiny import left_padded, logits_of, text, tiny

from .conftest import machines

CODES = CodeLookup(n_global=2, n_local=6, top_k=3, shortlist=6)
# the first layer keeps its window only
KEYS = LMInfinite(n_global=2, n_local=6, top_k=3, top_k_from_layer=1)
LAYERS = {CODES: 1, KEYS: 2}


def on(kinds: tuple[str, ...]) -> None:
    """Which devices keep tokens by address, and note them by kernels."""
    growing.PIECE = pages.PAGE = 8
    addresses.DEVICES, addresses.SPARE, ring.DEVICES = kinds, 1, kinds
    turns.DEVICES = kinds


def filled(cache: Any) -> list[list[int]]:
    """Slots of every row of every layer."""
    return [[row.filled for row in layer.everything.rows] for layer in cache.layers if layer.everything is not None]


def generates_the_same_in_two_turns(method: Any = CODES) -> None:
    """From a graph, and by torch without addresses, across borders of pages and rows of padding."""
    model, more = tiny(num_hidden_layers=LAYERS[method]), text(3, 5, seed=9)
    ids, mask = left_padded([text(1, n, seed=n)[0] for n in (20, 9, 13)])
    found = []
    with method.on(model), pytest.MonkeyPatch.context() as patch:
        watched = machines(patch)(model)
        for kinds, off in ((("cpu",), False), ((), True)):
            on(kinds)
            settings: dict[str, Any] = {"do_sample": False, "disable_compile": off, "return_dict_in_generate": True}
            first = model.generate(ids, attention_mask=mask, max_new_tokens=16, output_logits=True, **settings)
            cache, turn = first.past_key_values, torch.cat([first.sequences, more], 1)
            both = torch.cat([mask, mask.new_ones(3, turn.shape[1] - mask.shape[1])], 1)
            second = model.generate(turn, attention_mask=both, past_key_values=cache, max_new_tokens=3, **settings)
            found.append((first, second, filled(cache)))
    assert watched.recorded == 3, "one of each turn, and one where a page more had no entry"
    assert watched.replayed == 13 + 1
    graph, other = found
    assert torch.equal(graph[0].sequences, other[0].sequences)
    assert torch.equal(graph[1].sequences, other[1].sequences)
    assert graph[2] == other[2] == [[43, 32, 36]]
    torch.testing.assert_close(torch.stack(graph[0].logits), torch.stack(other[0].logits), atol=2e-5, rtol=1e-5)


def rows_are_chosen_again_between_steps(method: Any = CODES) -> None:
    """As beams are: replayed logits are those of reading each row's text by itself."""
    on(("cpu",))
    model, ids, cache = tiny(num_hidden_layers=LAYERS[method]), text(3, 30, seed=2), DynamicCache()
    rows = [ids[b : b + 1, :14] for b in range(3)]
    with method.on(model), pytest.MonkeyPatch.context() as patch, torch.no_grad():
        watched = machines(patch)(model)
        forward = graph_forward(model)
        model(ids[:, :14], past_key_values=cache, use_cache=True)
        for t in range(14, 30):
            out = forward(input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            rows = [torch.cat([row, ids[b : b + 1, t : t + 1]], 1) for b, row in enumerate(rows)]
            if t % 9 == 0:
                order = torch.tensor([[2, 0, 0], [1, 1, 2]][t % 2])
                cache.reorder_cache(order)
                rows = [rows[b] for b in order.tolist()]
            elif t % 5 == 0:
                alone = torch.cat([logits_of(model, row, use_cache=False)[:, -1] for row in rows])
                torch.testing.assert_close(out.logits[:, -1], alone, atol=2e-5, rtol=1e-5)
        assert watched.replayed > 10
        assert watched.recorded <= 3


def a_mask_hides_tokens_between_steps_and_copies_go_on_by_themselves(method: Any = CODES) -> None:
    """By address as by torch: hidden tokens, a row that was too short for codes at first, and a deep copy."""
    model, found = tiny(num_hidden_layers=LAYERS[method]), []
    ids, mask = left_padded([text(1, n, seed=n)[0] for n in (40, 24)])
    hidden = mask.clone()
    hidden[:, 20:25] = 0
    pos = (mask.cumsum(1) - 1).clamp(min=0)
    with method.on(model), torch.no_grad():
        for kinds in (("cpu",), ()):
            on(kinds)
            cache, logits, start = DynamicCache(), [], 0
            for stop in (18, *range(19, 41)):
                if stop == 35:
                    cache = copy.deepcopy(cache)
                seen, at = (hidden if stop > 30 else mask)[:, :stop], slice(start, stop)
                given = {"attention_mask": seen, "position_ids": pos[:, at], "past_key_values": cache}
                logits.append(model(ids[:, at], use_cache=True, **given).logits)
                start = stop
            found.append((torch.cat(logits, 1), filled(cache)))
    assert found[0][1] == found[1][1]
    torch.testing.assert_close(found[0][0][mask.bool()], found[1][0][mask.bool()], atol=2e-5, rtol=1e-5)
