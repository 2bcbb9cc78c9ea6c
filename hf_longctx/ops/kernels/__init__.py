"""The kernels behind `attend`: one signature, chosen by `choose`, each checked against `reference`."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace

from torch import Tensor

from ..masks import Causal
from .base import Call, Kernel
from .fused import FusedKernel

__all__ = ["FUSED", "KERNELS", "Call", "FusedKernel", "Kernel", "choose", "find"]

KERNELS: dict[str, Kernel] = {}  # by priority: the first that can do a call gets it
FUSED: list[FusedKernel] = []  # those that do all branches of a softmax at once; tried before the others


def choose(call: Call, q_BHLD: Tensor, k_BGSD: Tensor, name: str = "auto", strict: bool = True) -> Kernel:
    """The kernel for a call. A kernel asked for by name that cannot do the call is an error, not a fallback.

    With `strict=False` it is an error only if the kernel cannot run here at all (its package, the device, the dtype);
    a call with a mask, a bias or a cap that it does not take goes to the fastest kernel that does.
    """
    if name == "auto":
        for kernel in KERNELS.values():
            args = call, q_BHLD, k_BGSD
            if not kernel.by_name and kernel.unsupported_reason(*args) is None and kernel.slower_reason(*args) is None:
                return kernel
        raise ValueError(f"no kernel can do this attention. {_reasons(call, q_BHLD, k_BGSD)}")
    if name not in KERNELS:
        raise ValueError(f"kernel={name!r}: expected auto or one of {', '.join(KERNELS)}.")
    kernel = KERNELS[name]
    reason = kernel.unsupported_reason(call, q_BHLD, k_BGSD)
    if reason is None:
        return kernel
    if not strict:
        in_order = replace(call.positions, same_rows=True, consecutive=True)
        plainest = replace(call, positions=in_order, mask=Causal(), bias=None, softcap=None)
        if kernel.unsupported_reason(plainest, q_BHLD, k_BGSD) is None:
            return choose(call, q_BHLD, k_BGSD)
    raise ValueError(
        f"kernel={name!r} cannot do this attention: {reason}. Use kernel='auto' or 'reference'. "
        f"{_reasons(call, q_BHLD, k_BGSD)}"
    )


def _reasons(call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str:
    """What every kernel says to a call."""
    said = {name: kernel.unsupported_reason(call, q_BHLD, k_BGSD) for name, kernel in KERNELS.items()}
    return "All kernels: " + "; ".join(f"{name}: {reason or 'can'}" for name, reason in said.items()) + "."


def find() -> None:
    """Register the kernels of every file in this folder. One that was put there later is found by another call."""
    for found in pkgutil.iter_modules(__path__):
        if found.name.startswith(("triton_", "gluon_")):
            continue  # code in Triton waits for its use: there may be no Triton
        module = importlib.import_module(f".{found.name}", __name__)
        own = [cls for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == module.__name__]
        for cls in own:
            if "name" not in vars(cls):
                continue  # a base, or no kernel
            if issubclass(cls, Kernel):
                KERNELS.setdefault(cls.name, cls())
            elif issubclass(cls, FusedKernel) and not any(type(fused) is cls for fused in FUSED):
                FUSED.append(cls())
    for kernel in sorted(KERNELS.values(), key=lambda kernel: kernel.priority):
        KERNELS[kernel.name] = KERNELS.pop(kernel.name)


find()
