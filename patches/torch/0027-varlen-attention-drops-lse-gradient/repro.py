"""Does the log-sum-exp of varlen_attn pass on its gradient? Exits 1 if not, 0 if it does. Needs a GPU."""

import sys

import torch

if not torch.cuda.is_available():
    print("needs a GPU")
    sys.exit(3)
from torch.nn.attention.varlen import AuxRequest, varlen_attn


def defect() -> str | None:
    """The gradient of the queries that the log-sum-exp gives."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 16, 2, 64, device="cuda", dtype=torch.bfloat16)
    query.requires_grad_()
    ends = torch.tensor([0, 16], device="cuda", dtype=torch.int32)
    _, lse = varlen_attn(query, key, value, ends, ends, 16, 16, return_aux=AuxRequest(lse=True))
    (grad,) = torch.autograd.grad(lse.float().sum(), query, allow_unused=True)
    return "the gradient is zero" if grad is None or not grad.any() else None


if __name__ == "__main__":
    sys.exit(defect())
