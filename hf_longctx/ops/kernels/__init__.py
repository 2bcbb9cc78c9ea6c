"""The kernels behind `attend`: one signature, chosen by `choose`, each checked against `reference`."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..masks import Causal
from . import blocked, cuda_flash, cudnn, decode, few, flash_attn, flex, reference, selected, window
from .base import Call, Kernel

__all__ = ["KERNELS", "Call", "Kernel", "choose", "decode"]

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


def choose(call: Call, q_BHLD: Tensor, k_BGSD: Tensor, name: str = "auto", strict: bool = True) -> Kernel:
    """The kernel for a call. A kernel asked for by name that cannot do the call is an error, not a fallback.

    With `strict=False` it is an error only if the kernel cannot run here at all (its package, the device, the dtype);
    a call that it has no words for goes to the fastest that has.
    """
    if name == "auto":
        if q_BHLD.shape[2] == 1 and q_BHLD.dtype == torch.float32 and not call.is_selected:
            return KERNELS["reference"]  # blocks and their masks cost more than one row of scores
        for kernel in ORDER:
            if kernel.refuses(call, q_BHLD, k_BGSD) is None:
                return kernel
        raise AssertionError("the reference kernel refuses nothing but TopKeys, which `selected` takes")
    if name not in KERNELS:
        raise ValueError(f"kernel={name!r}: expected auto or one of {', '.join(KERNELS)}.")
    kernel = KERNELS["selected"] if call.is_selected else KERNELS[name]
    reason = kernel.refuses(call, q_BHLD, k_BGSD)
    if reason is not None and not strict:
        plainest = dataclasses.replace(call, visible=Causal(), regular=True)
        if kernel.refuses(plainest, q_BHLD, k_BGSD) is None:
            return choose(call, q_BHLD, k_BGSD)
    if reason is not None:
        raise ValueError(f"kernel={name!r} cannot do this attention: {reason}. Use kernel='auto' or 'reference'.")
    return kernel
