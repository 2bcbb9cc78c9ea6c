"""The kernels that multiply bits, without a GPU: run by Triton's interpreter as `tests.ops.gluon` translates them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

BEGIN = """
from pathlib import Path
import torch
import triton.language as tl
import hf_longctx.ops.kernels
from hf_longctx.ops import pages as sizes
from hf_longctx.ops.paged import paged
from tests.ops.gluon import interpreted
bits, S = (interpreted(name, Path(FOLDER)) for name in ("triton_bits", "triton_sampled"))
from hf_longctx.ops.kernels import triton_lookup as T
from tests.ops.lookups import Lookup, agree
sizes.PAGE = 1024  # small pages: the interpreter takes its time for every program
"""

CHOOSING = """
for H, G, D, n, shortlist, per in (
    (3, 3, 64, 200, 8, "group"), (8, 1, 256, 90, 8, "group"), (2, 1, 96, 90, 20, "head"),
):
    lookup = Lookup.of(H, G, D, n, more=1)
    given = {"k": 4, "per": per, "shortlist": shortlist, **lookup.settings}
    plain = T.choose(lookup.q, lookup.q_pos, lookup.pages, **given)
    table = T.choose(lookup.q, lookup.q_pos, lookup.pages, **given, by_bits=True)
    agree(lookup, table, 4, per, shortlist)
    assert torch.equal(plain, table)
"""

SAMPLED = """
S.SAMPLE = tl.constexpr(64)  # so that few tokens are in it
for H, G, D, n, shortlist, near in ((4, 1, 64, 1900, 30, 100), (2, 2, 32, 1200, 300, 20), (2, 1, 64, 1100, 16, 1090)):
    lookup = Lookup.of(H, G, D, n, 1, near, more=1)
    at, settings = (lookup.q_pos, lookup.pages), lookup.settings
    found = []
    for once in (True, False):
        shapes = T.Shapes(lookup.q, lookup.pages, "group", True, once)
        ready = T.prepared(lookup.q, lookup.pages, shapes)
        number, slot = T.shortlisted(ready, *at, shapes, **settings, shortlist=shortlist)
        found.append([set(row[:n]) for row, n in zip(slot.tolist(), number.tolist())])
    assert found[0] == found[1]
    given = {"k": 4, "per": "group", "shortlist": shortlist, **settings}
    agree(lookup, T.choose(lookup.q, *at, **given, by_bits=True, sampled=True), 4, "group", shortlist)

# keys that are all alike: the lower slots
one = torch.ones(1, 1, 2000, 32)
pages, held = paged(one, one, torch.arange(2000)[None], 32)
given = {"k": 5, "near": 1, "per": "group", "shortlist": 16, "after_B": torch.tensor([1100])}
table = T.choose(torch.ones(1, 1, 1, 32), torch.tensor([[1999]]), pages, **given, by_bits=True, sampled=True)
assert table.flatten().tolist() == list(range(1101, 1106))
"""


@pytest.mark.parametrize("code", [CHOOSING, SAMPLED], ids=["choosing", "sampled"])
def test_products_of_bits(code: str, tmp_path: Path) -> None:
    run(f"FOLDER = {str(tmp_path)!r}\n" + BEGIN + code, "1")


@pytest.mark.parametrize(("tokens", "texts"), [(131_072, 40), (1_000_000, 12)])
@pytest.mark.parametrize("kind", ["alike", "runs", "repeating"])
def test_a_sample_lets_enough_tokens_pass_and_not_too_many(kind: str, tokens: int, texts: int) -> None:
    """In the arithmetic of the kernels, for texts whose good tokens stand together or come again and again."""
    import torch

    from hf_longctx.ops.kernels.triton_sampled import SAMPLE, _most

    wanted, apart = 1024, 1
    while tokens > SAMPLE.value * apart and apart < 128:
        apart *= 2
    number = torch.arange(-(-tokens // apart))
    chosen = number * apart + ((number * 40503 >> 9) & (apart - 1))
    mean = wanted / apart
    rank = int(mean + 6 * mean**0.5) + 9
    for seed in range(texts):
        random = torch.Generator().manual_seed(seed)
        score = torch.randn(tokens, generator=random)
        if kind == "runs":
            score += 2 * torch.randn(tokens // 50 + 1, generator=random).repeat_interleave(50)[:tokens]
        elif kind == "repeating":
            score += 3 * torch.randn(128, generator=random).repeat(tokens // 128 + 1)[:tokens]
        sample = score[chosen[chosen < tokens]].sort(descending=True).values
        most, fewest = (int((score >= sample[at - 1]).sum()) for at in (rank + rank // 4, rank))
        assert wanted <= fewest <= most <= 4 * _most(wanted), (seed, fewest, most)
