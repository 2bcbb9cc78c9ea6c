"""The kernels behind `attend`: one signature, chosen by `choose`, each checked against `reference`."""

from __future__ import annotations

from torch import Tensor

from . import blocked, cuda_flash, cudnn, few, flash_attn, flex, reference, selected, window
from .call import Call, Kernel

__all__ = ["KERNELS", "Call", "Kernel", "choose"]

# in order of preference: the first that can do a call gets it. flex compiles for every shape, so only by name.
ORDER: list[Kernel] = [
    selected.Kernel(),
    few.Kernel(),
    cudnn.Kernel(),
    window.Kernel(),
    flash_attn.Kernel(),
    cuda_flash.Kernel(),
    blocked.Kernel(),
    reference.Kernel(),
    flex.Kernel(),
]
KERNELS: dict[str, Kernel] = {kernel.name: kernel for kernel in ORDER}


def choose(call: Call, q_BHLD: Tensor, k_BGSD: Tensor, name: str = "auto") -> Kernel:
    """The kernel for a call. A kernel asked for by name that cannot do the call is an error, not a fallback."""
    if name == "auto":
        for kernel in ORDER:
            if kernel.refuses(call, q_BHLD, k_BGSD) is None:
                return kernel
        raise AssertionError("the reference kernel refuses nothing but Selected, which `selected` takes")
    if name not in KERNELS:
        raise ValueError(f"kernel={name!r}: expected auto or one of {', '.join(KERNELS)}.")
    kernel = KERNELS["selected"] if call.is_selected else KERNELS[name]
    reason = kernel.refuses(call, q_BHLD, k_BGSD)
    if reason is not None:
        raise ValueError(f"kernel={name!r} cannot do this attention: {reason}. Use kernel='auto' or 'reference'.")
    return kernel
