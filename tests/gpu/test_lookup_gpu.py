"""Look-ups on a GPU: codes, choices and logits are those of the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import CodeLookup
from hf_longctx.attention.lookup import choose
from hf_longctx.cache import KeyValues, Store
from hf_longctx.ops.codes import Centre, encode
from tests.tiny import left_padded, logits_of, text, tiny

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("D", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_are_equal_on_cpu_and_gpu(D: int, dtype: torch.dtype) -> None:
    k = torch.randn(4, 3000, D, generator=torch.Generator().manual_seed(D)).to(dtype)
    centre = Centre.of(k[:, :256])
    words, size = encode(k, centre)
    on_gpu = encode(k.cuda(), Centre(*(x.cuda() for x in centre)))
    assert torch.equal(on_gpu[0].cpu(), words)
    assert torch.equal(on_gpu[1].cpu(), size)


def test_choices_are_those_of_the_cpu() -> None:
    random = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 9, 40, 64, generator=random), torch.randn(2, 3, 20_000, 64, generator=random)
    pos, q_pos = torch.arange(20_000).expand(2, -1), torch.arange(19_960, 20_000).expand(2, -1)

    def chosen(device: str, by: str) -> Tensor:
        keys = KeyValues(k.to(device), k.to(device), pos.to(device))
        store = Store.of(keys, 256 if by == "signs" else 0)
        given = q.to(device), q_pos.to(device), store
        first = keys.first(16, False)
        return choose(*given, k=8, near=1000, first=first, by=by, per="group", shortlist=64).cpu().sort(-1).values

    for by in ("keys", "signs"):
        same = (chosen("cuda", by) == chosen("cpu", by)).all(-1).float().mean()
        assert same > 0.98  # two keys may score alike, to the rounding of a matrix product


@pytest.mark.parametrize("settings", [{}, {"by": "keys", "per": "head", "gate": None}], ids=["signs", "keys"])
def test_logits_cached_and_padded_are_those_of_the_cpu(settings: dict[str, Any]) -> None:
    ids, mask = left_padded([text(1, n, seed=n)[0] for n in (400, 180)])
    model = tiny()
    CodeLookup(n_global=2, n_local=32, **{"top_k": 4, "shortlist": 64, **settings}).apply(model)

    def read(device: str) -> Tensor:
        model.to(device)
        cache, steps = DynamicCache(), []
        for start, stop in ((0, 380), (380, 381), (381, 382), (382, 400)):
            seen = mask[:, :stop].to(device)
            steps.append(logits_of(model, ids[:, start:stop].to(device), attention_mask=seen, past_key_values=cache))
        return torch.cat(steps, 1).cpu().masked_fill(~mask[..., None].bool(), 0)

    torch.testing.assert_close(read("cuda"), read("cpu"), rtol=1e-3, atol=1e-3)
