"""Is linear_cross_entropy of bfloat16 as exact as a head and its loss apart? Exits 1 if not, 0 if it is."""

import sys

import torch
from torch.nn import functional as F

if not hasattr(F, "linear_cross_entropy"):
    print("this version has no linear_cross_entropy")
    sys.exit(3)


def defect() -> str | None:
    """How far both are from the loss in float64."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(512, 64).bfloat16(), (torch.randn(4096, 64) / 8).bfloat16()
    target = torch.randint(0, 4096, (512,))
    exact = F.cross_entropy(hidden.double() @ weight.double().T, target)
    apart = (F.cross_entropy((hidden @ weight.T).float(), target) - exact).abs().item()
    fused = (F.linear_cross_entropy(hidden, weight, target).double() - exact).abs().item()
    return None if fused <= 10 * apart + 1e-4 else f"{fused:.1e} off in one, {apart:.1e} in a head and a float32 loss"


if __name__ == "__main__":
    sys.exit(defect())
