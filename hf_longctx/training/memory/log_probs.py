"""`log_probs_of`: the log-probability of one label a token, which keeps its logits only."""

# N tokens, V vocabulary
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...parallel.model.documents import IGNORED


def log_probs_of(logits_NV: Tensor, labels_N: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """The log-probability of each label, in at least fp32; 0 where the label is `ignore_index`."""
    real_N = labels_N != ignore_index
    found_N: Tensor = _LogProbs.apply(logits_NV, labels_N.where(real_N, 0))
    return found_N.where(real_N, 0)


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, labels_N: Tensor) -> Tensor:
        ctx.save_for_backward(logits_NV, labels_N)
        return _log_softmax(logits_NV).gather(1, labels_N[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits_NV, labels_N = ctx.saved_tensors
        # softmax minus one at the label, in place: the largest tensors there are
        found_NV = _log_softmax(logits_NV).exp_()
        found_NV.scatter_add_(1, labels_N[:, None], found_NV.new_full((len(labels_N), 1), -1.0))
        return found_NV.mul_(-grads[0][:, None]).to(logits_NV.dtype), None


def _log_softmax(logits_NV: Tensor) -> Tensor:
    return torch.log_softmax(logits_NV, -1, dtype=torch.promote_types(logits_NV.dtype, torch.float32))
