"""Every mask against its second definition, whole and in blocks; a new one, of four lines, works at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx.ops.attend import attend
from hf_longctx.ops.kernels import FUSED, KERNELS, blocked
from hf_longctx.ops.kernels.base import takes
from hf_longctx.ops.masks import (
    DOCUMENT,
    BeyondWindow,
    Causal,
    Chunk,
    Full,
    Mask,
    Packed,
    TopBlocks,
    TopKeys,
    Window,
)
from tests.ops.cases import MASKS, SEES, SHAPES, Problem, SameParity, gradients, problem, selected, truth, visible_pairs

PLAIN = ("reference", "blocked")
INSIDE = {**MASKS, "chunk-before": Chunk(3, back=1), "window": Window(4), "outside": BeyondWindow(3)}


@pytest.fixture(autouse=True, params=[256, 7], ids=["one-block", "blocks-of-7"])
def block(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "BLOCK", request.param)


def documents(*lengths: int) -> Tensor:
    return torch.cat([number * DOCUMENT + torch.arange(length) for number, length in enumerate(lengths)])


def packed(queries: int = 37) -> Problem:
    """Two rows of documents, the second with padding in the middle; the last tokens ask."""
    p = problem("prefill")
    padded = documents(1, 9, 20, 7)
    padded[12:15] = -1
    p.k_pos = torch.stack([documents(16, 4, 17), padded])
    p.q_pos, p.q, p.grad = p.k_pos[:, -queries:], p.q[:, :, -queries:], p.grad[:, -queries:]
    return p


def blocks(p: Problem, heads: int, inside: Mask, q_size: int = 5, k_size: int = 4) -> TopBlocks:
    """Two different blocks of keys for each block of queries, some of them missing."""
    B, _, L, _ = p.q.shape
    generator = torch.Generator().manual_seed(3)
    size = B, heads, -(-L // q_size), -(-p.k.shape[2] // k_size)
    index = torch.rand(size, generator=generator).argsort(-1)[..., :2]
    index[torch.rand(index.shape, generator=generator) < 0.3] = -1
    return TopBlocks(index, q_size, k_size, inside)


def check(p: Problem, mask: Mask, kernel: str) -> None:
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    branches = [p.branch(mask)]
    out, true = attend(branches, scale=0.4, kernel=kernel), truth(branches, 0.4)[0]
    torch.testing.assert_close(out.double(), true, rtol=1e-5, atol=1e-5)
    for mine, other in zip(gradients(out, p), gradients(true, p), strict=True):
        torch.testing.assert_close(mine.double(), other.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", PLAIN)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_masks_by_position(shape: str, mask: str, kernel: str) -> None:
    check(problem(shape), MASKS[mask], kernel)


@pytest.mark.parametrize("kernel", PLAIN)
@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("queries", [37, 13, 1])
def test_packed_documents_do_not_see_each_other(queries: int, inside: str, kernel: str) -> None:
    check(packed(queries), Packed(INSIDE[inside]), kernel)


def test_packed_documents_equal_each_alone() -> None:
    p, one = packed(), problem("prefill")
    together = attend([p.branch(Packed())], scale=0.4)[0, 16:20]
    one.q, one.k, one.v = (x[:1, :, 16:20] for x in (p.q, p.k, p.v))
    one.q_pos = one.k_pos = torch.arange(4)[None]
    torch.testing.assert_close(together, attend([one.branch(Causal())], scale=0.4)[0])


@pytest.mark.parametrize("kernel", PLAIN)
@pytest.mark.parametrize("inside", [Causal(), Full(), Window(9)], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_of_keys(shape: str, heads: int, inside: Mask, kernel: str) -> None:
    p = problem(shape)
    check(p, blocks(p, heads, inside), kernel)


@pytest.mark.parametrize("kernel", [*PLAIN, "selected"])
@pytest.mark.parametrize("shape", SHAPES)
def test_keys_of_each_query(shape: str, kernel: str) -> None:
    p, chosen = selected(shape)
    check(p, chosen, kernel)


@pytest.mark.parametrize("mask", [*MASKS.values(), *map(Packed, INSIDE.values())], ids=repr)
def test_nothing_outside_of_the_span_is_seen(mask: Mask) -> None:
    p = packed() if isinstance(mask, Packed) else problem("prefill")
    for query in range(0, 34, 5):
        p.q_pos = p.k_pos[:, query : query + 3]
        p.q = p.q[:, :, :3]
        real = p.q_pos[p.q_pos >= 0]
        low, high = mask.span(int(real.min()), int(real.max()))
        seen = p.k_pos[visible_pairs(p.branch(mask)).any(1).any(1)]
        assert not len(seen) or (low <= int(seen.min()) and int(seen.max()) <= high)


@pytest.mark.parametrize("kernel", [*PLAIN, "auto"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_mask_works_at_once(shape: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SEES, SameParity, lambda mask, q, k: (q % 2) == (k % 2))
    check(problem(shape), SameParity(), kernel)


def test_kernels_take_the_masks_that_they_name_and_no_relatives_of_them() -> None:
    class Odd(Window):
        pass

    taken = [name for name, kernel in KERNELS.items() if takes(kernel.masks, SameParity())]
    assert taken == ["blocked", "reference", "flex"]
    assert taken == [name for name, kernel in KERNELS.items() if takes(kernel.masks, Odd(3))]
    assert not any(takes(fused.masks, Odd(3)) or takes(fused.masks, TopKeys(torch.zeros(0))) for fused in FUSED)
