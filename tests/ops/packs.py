"""Rows of packed documents, and torch's CUDA ops for them written plainly, so that a CPU can test who calls them."""

# H query heads, G key/value heads, L queries, S keys, D head dim, N tokens of all documents
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx.ops.branch import Branch
from hf_longctx.ops.masks import DOCUMENT, Causal, Full, Mask, Packed, Window
from hf_longctx.ops.positions import Positions
from hf_longctx.ops.segments import segments
from tests.ops.cases import Problem

Lengths = Sequence[tuple[int, int]]  # queries and keys of each document

PACKS: dict[str, Lengths] = {
    "odd": [(16, 16), (4, 4), (1, 1), (33, 33)],
    "single-tokens": [(1, 1)] * 5,
    "one-document": [(37, 37)],
    "some-without-queries-or-keys": [(0, 7), (5, 5), (3, 0), (0, 2), (9, 9), (4, 0)],
    "after-a-cache": [(3, 20), (7, 7), (2, 5)],
    "steps-after-a-cache": [(1, 9), (1, 1), (3, 4)],
    "more-queries-than-keys": [(12, 5), (6, 6), (3, 2)],
}
INSIDE: dict[str, Mask] = {"causal": Causal(), "full": Full(), "short-window": Window(3), "long-window": Window(64)}


def codes(lengths: Lengths) -> tuple[Tensor, Tensor]:
    """Positions of queries and keys: documents begin anywhere, and queries and keys of each end together."""
    q_pos, k_pos = [torch.arange(0)], [torch.arange(0)]
    for number, (queries, keys) in enumerate(lengths):
        end = number * DOCUMENT + 7 * number + max(queries, keys)
        q_pos.append(torch.arange(end - queries, end))
        k_pos.append(torch.arange(end - keys, end))
    return torch.cat(q_pos)[None], torch.cat(k_pos)[None]


def packed(
    lengths: Lengths, heads: int = 9, groups: int = 3, dim: int = 8, dtype: Any = torch.float32, device: str = "cpu"
) -> Problem:
    """A problem whose one row holds documents of so many queries and keys."""
    q_pos, k_pos = codes(lengths)
    L, S = q_pos.shape[1], k_pos.shape[1]
    generator = torch.Generator().manual_seed(L + S)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(device, dtype)

    q, k, v = random(1, heads, L, dim) * 2, random(1, groups, S, dim), random(1, groups, S, dim)
    return Problem(q, k, v, q_pos.to(device), k_pos.to(device), random(1, L, heads, dim))


def known(p: Problem, lengths: Lengths) -> Positions:
    """What is true of `codes`."""
    return Positions(p.q_pos, p.k_pos, consecutive=True, segments=segments(lengths, p.q.device))


def branch_of(p: Problem, lengths: Lengths, inside: Mask) -> Branch:
    return Branch(p.q, p.k, p.v, known(p, lengths), Packed(inside))


class PlainOps:
    """torch's flash and cuDNN attention by their documented meaning: indices only, in float64."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def flash(self, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **settings: Any) -> tuple[Tensor, ...]:
        """(N, H, D) in documents; +inf is the log-sum-exp of a row without keys."""
        self.calls.append("flash")
        out, lse = torch.full_like(q, math.nan), q.new_full(q.shape[1::-1], math.nan, dtype=torch.float64)
        for rows, columns in self._documents(*rest[:4]):
            seen = self._seen(rows, columns, rest[5], settings)
            out[rows], lse[:, rows] = self._attention(q[rows], k[columns], v[columns], seen, settings["scale"])
        return out, lse.where(lse != -math.inf, math.inf).to(torch.promote_types(q.dtype, torch.float32)), out, out, out

    def flash_backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, *rest: Any, **settings: Any):  # type: ignore[no-untyped-def]
        self.calls.append("flash_backward")
        lse, grads = rest[0].double(), [torch.full_like(x, math.nan) for x in (q, k, v)]
        for rows, columns in self._documents(*rest[1:5]):
            seen = self._seen(rows, columns, rest[6], settings)
            args = grad[rows], q[rows], k[columns], v[columns], out[rows], lse[:, rows], seen, settings["scale"]
            grads[0][rows], grads[1][columns], grads[2][columns] = self._gradients(*args)
        return tuple(grads)

    def cudnn(self, q: Tensor, k: Tensor, v: Tensor, *rest: Any, scale: float) -> tuple[Tensor, ...]:
        """(1, H, L, D); causal from the first token."""
        self.calls.append("cudnn")
        assert min(q.shape[2], k.shape[2]) > 1
        first = (x[0].transpose(0, 1) for x in (q, k, v))
        out, lse = self._attention(*first, self._triangle(q, k, rest[3]), scale)
        lse = lse.to(torch.promote_types(q.dtype, torch.float32))[None, ..., None]
        return out.transpose(0, 1)[None].to(q.dtype), lse, q, q

    def cudnn_backward(self, *args: Any, scale: float) -> list[Tensor]:
        self.calls.append("cudnn_backward")
        grad, q, k, v, out = (x[0].transpose(0, 1) for x in args[:5])
        assert args[0].stride() == args[4].stride()  # else it copies
        seen = self._triangle(args[1], args[2], args[14])
        found = self._gradients(grad, q, k, v, out, args[5][0, :, :, 0].double(), seen, scale)
        return [x.transpose(0, 1)[None] for x in found]

    def _documents(self, cu_q: Tensor, cu_k: Tensor, longest_q: int, longest_k: int) -> Iterator[tuple[slice, slice]]:
        assert cu_q.dtype == cu_k.dtype == torch.int32
        assert (longest_q, longest_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
        q, k = cu_q.tolist(), cu_k.tolist()
        yield from zip(map(slice, q, q[1:]), map(slice, k, k[1:]), strict=True)

    def _seen(self, rows: slice, columns: slice, causal: bool, settings: dict[str, Any]) -> Tensor:
        """Indices counted from the end; causal is a window of any length to the left and none to the right."""
        q, k = torch.arange(rows.start - rows.stop, 0), torch.arange(columns.start - columns.stop, 0)
        distance = q[:, None] - k[None]
        left, right = settings["window_size_left"], settings["window_size_right"]
        seen = (distance >= 0) if causal else torch.ones_like(distance, dtype=torch.bool)
        seen = seen if left is None or left < 0 else seen & (distance <= left)
        return seen if right is None or right < 0 else seen & (-distance <= right)

    def _triangle(self, q: Tensor, k: Tensor, causal: bool) -> Tensor:
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
        return seen.tril() if causal else seen

    def _attention(self, q_LHD: Tensor, k_SGD: Tensor, v_SGD: Tensor, seen: Tensor, scale: float):  # type: ignore[no-untyped-def]
        weights, lse = self._weights(q_LHD, k_SGD, seen, scale, None)
        return torch.einsum("hls,shd->lhd", weights, self._wide(v_SGD, q_LHD)).to(q_LHD.dtype), lse

    def _gradients(self, grad, q, k, v, out, lse, seen, scale):  # type: ignore[no-untyped-def]
        weights, _ = self._weights(q, k, seen, scale, lse)
        delta = (grad.double() * out.double()).sum(-1).T[..., None]
        dscores = weights * (torch.einsum("lhd,shd->hls", grad.double(), self._wide(v, q)) - delta) * scale
        dq = torch.einsum("hls,shd->lhd", dscores, self._wide(k, q))
        dk, dv = torch.einsum("hls,lhd->shd", dscores, q.double()), torch.einsum("hls,lhd->shd", weights, grad.double())
        dk, dv = (x.unflatten(1, (k.shape[1], -1)).sum(2).to(k.dtype) for x in (dk, dv))
        return dq.to(q.dtype), dk, dv

    def _wide(self, x_SGD: Tensor, q_LHD: Tensor) -> Tensor:
        return x_SGD.double().repeat_interleave(q_LHD.shape[1] // x_SGD.shape[1], 1)

    def _weights(self, q: Tensor, k: Tensor, seen: Tensor, scale: float, lse: Tensor | None) -> tuple[Tensor, Tensor]:
        scores = torch.einsum("lhd,shd->hls", q.double(), self._wide(k, q)) * scale
        scores = scores.masked_fill(~seen, -math.inf)
        lse = scores.logsumexp(-1) if lse is None else lse
        return torch.exp(scores - torch.where(lse == -math.inf, 0.0, lse)[..., None]), lse


def plain_ops(monkeypatch: pytest.MonkeyPatch) -> PlainOps:
    """Put `PlainOps` where the kernels look for torch's."""
    ops = PlainOps()
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", ops.flash)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", ops.flash_backward)
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", ops.cudnn)
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention_backward", ops.cudnn_backward)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    return ops
