"""What attention has computed, kept from a checkpointed layer's forward to its recomputation.

Both are dispatch modes: the first keeps what operators of attention return, the second returns it in their place. The
rest of the layer is computed again, and the gradient of attention finds its queries, keys and values there.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from .host import HostBuffers

# of sequence parallelism and flash-attn; of torch: its kernels, and those of packed documents
ATTENTION = ("flash_attn", "_scaled_dot_product_", "_flash_attention_", "_efficient_attention_", "_varlen_attn")


@dataclass(eq=False)
class Keeper:
    """What kept attention counts and uses in one model.

    Args:
        host: Where it is kept, if not on the device.
        layers: Calls of attention that were kept, in all.
        said: A forward without checkpointing was reported.
    """

    host: HostBuffers | None = None
    layers: int = 0
    said: bool = False

    def contexts(self) -> tuple[TorchDispatchMode, TorchDispatchMode]:
        """For `torch.utils.checkpoint`: those of a layer's forward and of its recomputation."""
        kept = _Kept(self)
        return _Keep(kept), _Recall(kept)


@functools.cache
def is_attention(operator: Any) -> bool:
    """Is an operator of torch the forward of attention?"""
    name = str(operator)
    return "backward" not in name and any(part in name for part in ATTENTION)


@dataclass(eq=False)
class _Kept:
    """The results of one layer, in the order in which they were computed."""

    keeper: Keeper
    results: list[Any] = field(default_factory=list)

    def put(self, result: Any) -> None:
        self.keeper.layers += 1
        leaves, form = tree_flatten(result)
        self.results.append(([self._kept(i, x) for i, x in enumerate(leaves)], form))

    def take(self, operator: Any) -> Any:
        if not self.results:
            raise RuntimeError(
                f"remat='attention': {operator} runs more often in recomputation than it did in forward. A second "
                f"backward through the same layer is not possible; set TrainingMemory(remat=None) for one."
            )
        leaves, form = self.results.pop(0)
        return tree_unflatten([x.back() if isinstance(x, _OnHost) else x for x in leaves], form)

    def _kept(self, i: int, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        host = self.keeper.host
        # random states are not worth a copy
        if host is not None and x.is_floating_point() and x.numel():
            return _OnHost(x, host, i)
        return x.detach()  # what is returned gets a history, which leads back here


class _OnHost:
    """A tensor in a buffer of the host, which goes back when it has been read, or is not needed any more."""

    def __init__(self, x: Tensor, host: HostBuffers, kind: int) -> None:
        self.host, self.kind, self.device = host, kind, x.device
        size = x.numel() * x.element_size()
        self.buffer = host.take(size, kind)
        self.copy = self.buffer[:size].view(x.dtype).as_strided(x.shape, _dense_strides(x))
        self.copy.copy_(x, non_blocking=host.pin)

    def back(self) -> Tensor:
        found = torch.empty_strided(self.copy.shape, self.copy.stride(), dtype=self.copy.dtype, device=self.device)
        return found.copy_(self.copy, non_blocking=self.host.pin)

    def __del__(self) -> None:
        self.host.give(self.buffer, self.kind)


def _dense_strides(x: Tensor) -> tuple[int, ...]:
    """The strides of a tensor without gaps that is laid out as `x`: a kernel may look at them."""
    return torch.empty_like(x, device="meta").stride()


class _Keep(TorchDispatchMode):
    def __init__(self, kept: _Kept) -> None:
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if is_attention(func):
            self.kept.put(result)
        return result


class _Recall(TorchDispatchMode):
    def __init__(self, kept: _Kept) -> None:
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.kept.take(func) if is_attention(func) else func(*args, **(kwargs or {}))
