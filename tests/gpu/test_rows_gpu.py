"""Rows that wait, or end early and go on, on a GPU: in rings, in the kernels of single tokens, and from CUDA graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longctx import LMInfinite, StreamingLLM
from hf_longctx.upstream.caches import cache_out, generate_cache, given_cache
from tests.contract.registry import same
from tests.tiny import left_padded, text, tiny

pytestmark = pytest.mark.gpu
METHODS = [LMInfinite(n_global=2, n_local=16), StreamingLLM(n_sink=2, window=16)]
each = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
SETTINGS: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True, "pad_token_id": 0}
# fp32 on tensor cores and another order of sums
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def model_of(family: str = "llama") -> Any:
    return tiny(family, hidden_size=64, head_dim=16).cuda()


@each
def test_a_row_that_waits_gives_what_it_gives_alone(method: Any) -> None:
    model = model_of()
    rows = [text(1, length, seed=length)[0] for length in (9, 27, 40)]
    ids, mask = (t.cuda() for t in left_padded(rows))
    with method.on(model), torch.no_grad():
        pos = (mask.cumsum(1) - 1).clamp(min=0)
        cache = cache_out(model(ids, attention_mask=mask, position_ids=pos, use_cache=True))
        new, real = text(3, 40, seed=5).cuda(), torch.ones(3, 40, dtype=torch.long, device="cuda")
        real[0, 3:29], real[1, ::2] = 0, 0  # longer than the window, and now and then
        out = []
        for t in range(40):
            mask = torch.cat([mask, real[:, t : t + 1]], 1)
            pos = (mask.cumsum(1) - 1)[:, -1:].clamp(min=0)
            given = given_cache(model, cache)
            out.append(model(new[:, t : t + 1], attention_mask=mask, position_ids=pos, **given).logits)
        got = torch.cat(out, 1)
        for b, row in enumerate(rows):
            kept = real[b].bool()
            alone = model(torch.cat([row.cuda(), new[b][kept]])[None], use_cache=False).logits[0, len(row) :]
            torch.testing.assert_close(got[b][kept], alone, **CLOSE)


@each
def test_rows_that_ended_early_go_on_in_the_next_turn_from_graphs(method: Any) -> None:
    model = model_of()
    ids, mask = (t.cuda() for t in left_padded([text(1, n, seed=n)[0] for n in (9, 27, 40)]))
    with method.on(model):
        free = model.generate(ids, attention_mask=mask, max_new_tokens=40, **SETTINGS)
        end = free.sequences[0, ids.shape[1] + 1].item()
        turn = model.generate(ids, attention_mask=mask, max_new_tokens=40, eos_token_id=end, **SETTINGS)
        new = turn.sequences[:, ids.shape[1] :]
        before = (new == end).long().cumsum(1) - (new == end).long()
        real = (before == 0).long()
        questions, asked = (t.cuda() for t in left_padded([text(1, n, seed=60 + n)[0] for n in (3, 7, 5)]))
        history, seen = torch.cat([turn.sequences, questions], 1), torch.cat([mask, real, asked], 1)
        given = generate_cache(cache_out(turn))
        together = model.generate(history, attention_mask=seen, **given, max_new_tokens=8, **SETTINGS)
        for b in range(3):
            alone = model.generate(history[b][seen[b].bool()][None], max_new_tokens=8, **SETTINGS)
            same(together.sequences[b, -8:], alone.sequences[0, -8:], f"row {b}")
