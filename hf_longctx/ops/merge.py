"""Two parts of one softmax as one, by their log-sum-exps."""

# B batch, H query heads, L queries, D head dim
from __future__ import annotations

import torch
from torch import Tensor

from .available import TRITON


def merge(out_BLHD: Tensor, lse_BHL: Tensor, part_BLHD: Tensor, part_lse_BHL: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts of one softmax as one. Log-sum-exps are fp32 (fp64 for fp64 inputs); -inf is a row without keys."""
    lse = torch.logaddexp(lse_BHL, part_lse_BHL)
    return out_BLHD * share(lse_BHL, lse) + part_BLHD * share(part_lse_BHL, lse), lse


def merge_into(out_BLHD: Tensor, lse_BHL: Tensor, part_BLHD: Tensor, part_lse_BHL: Tensor) -> None:
    """`merge`, in the memory of the first two, which may be views; on a GPU in one pass of a Triton kernel.

    Torch's kernels would read and write an fp32 output some ten times, which is 5 % of a long causal attention.
    """
    if TRITON and out_BLHD.is_cuda and out_BLHD.dtype != torch.float64:
        from .kernels.triton_merge_into import merge_rows

        merge_rows(out_BLHD, lse_BHL, part_BLHD, part_lse_BHL)
        return
    out, lse = merge(out_BLHD, lse_BHL, part_BLHD.to(out_BLHD.dtype), part_lse_BHL)
    out_BLHD.copy_(out)
    lse_BHL.copy_(lse)


def merge_sink(out_BLHD: Tensor, lse_BHL: Tensor, sink_H: Tensor) -> tuple[Tensor, Tensor]:
    """A softmax with one more logit for each head, in its denominator only: a key whose value is 0.

    The output is overwritten: in half precision another one in fp32 would take longer than a window's attention.
    """
    lse = torch.logaddexp(lse_BHL, sink_H.to(lse_BHL.dtype)[:, None].expand_as(lse_BHL))
    return out_BLHD.mul_(share(lse_BHL, lse)), lse


def share(part_lse_BHL: Tensor, lse_BHL: Tensor) -> Tensor:
    """(B, L, H, 1): how much of a softmax is in one of its parts; 0 for rows without any key, not nan."""
    base = torch.where(lse_BHL == float("-inf"), 0.0, lse_BHL)
    return torch.exp(part_lse_BHL - base).transpose(1, 2)[..., None]
