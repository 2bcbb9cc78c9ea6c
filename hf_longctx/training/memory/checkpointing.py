"""Kept attention behind transformers' own checkpointing, whoever turns it on, before or after."""

from __future__ import annotations

import logging
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...patch import Patch
from .host import HostBuffers
from .kept import Keeper

STATE = "_hf_longctx_kept_attention"  # in the __dict__ of a decoder: its Keeper
FUNCTION = "_gradient_checkpointing_func"  # of transformers' layers
ENABLE = "_set_gradient_checkpointing"  # which gives them theirs
INNER = "_hf_longctx_set_gradient_checkpointing"  # the one that a model had
logger = logging.getLogger("hf_longctx")


@dataclass(eq=False)
class _KeepingCheckpoint:
    """A layer's checkpoint function that keeps attention, as long as the decoder has a Keeper."""

    stock: Callable[..., Any]
    decoder: nn.Module

    # torch.compile goes around it: what is kept is known by dispatch modes, which see no graph's inside
    @torch.compiler.disable
    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        keeper: Keeper | None = vars(self.decoder).get(STATE)
        more = {} if keeper is None else {"context_fn": keeper.contexts}
        return self.stock(function, *args, **more)


def install_kept_attention(root: Any, decoder: nn.Module, offload: bool, patch: Patch) -> None:
    """Let every checkpointed layer keep what its attention has computed, in pinned memory of the host if `offload`."""
    if STATE in vars(decoder):
        raise ValueError(f"{type(root).__name__}: its attention is kept already. Undo the other patch first.")
    if offload and not torch.cuda.is_available():
        raise ValueError("offload=True: expected CUDA, and there is none. Set offload=False.")
    patch.set(decoder, STATE, Keeper(HostBuffers() if offload else None))
    for layer in root.modules():
        stock = vars(layer).get(FUNCTION)
        if stock is not None:
            patch.set(layer, FUNCTION, _keeping(stock, decoder))
    patch.set(root, INNER, getattr(root, ENABLE))
    patch.set(root, ENABLE, types.MethodType(_enable, root))
    patch.add_hook(decoder, _before, "pre")
    patch.add_hook(decoder, _after, "post")


def _enable(self: Any, *args: Any, **kwargs: Any) -> None:
    function = kwargs.get("gradient_checkpointing_func")
    if function is not None:
        decoder = next(m for m in self.modules() if STATE in vars(m))
        kwargs["gradient_checkpointing_func"] = _keeping(function, decoder)
    vars(self)[INNER](*args, **kwargs)


def _keeping(stock: Any, decoder: nn.Module) -> _KeepingCheckpoint:
    given = getattr(stock, "keywords", {})
    if given.get("use_reentrant", False):
        raise ValueError(
            "remat='attention' works with checkpointing of the kind use_reentrant=False. Set "
            "gradient_checkpointing_kwargs={'use_reentrant': False}, or TrainingMemory(remat=None)."
        )
    if "context_fn" in given:
        raise ValueError(
            "remat='attention': checkpointing has a context_fn already, which says what is kept (TRL's "
            "{'selective': True} is one). Leave one of the two out."
        )
    return _KeepingCheckpoint(stock, decoder)


def _before(decoder: Any, args: Any, kwargs: Any) -> None:
    keeper: Keeper = vars(decoder)[STATE]
    keeper.layers = 0
    if decoder.training and torch.is_grad_enabled() and not _checkpoints(decoder) and not keeper.said:
        logger.warning("remat='attention' has nothing to keep: turn on checkpointing (gradient_checkpointing=True).")
        keeper.said = True


def _after(decoder: Any, args: Any, out: Any) -> None:
    keeper: Keeper = vars(decoder)[STATE]
    trains = decoder.training and torch.is_grad_enabled() and _checkpoints(decoder)
    if out is not None and trains and not keeper.layers:
        raise ValueError(
            f"remat='attention': attn_implementation={decoder.config._attn_implementation!r} attends without an "
            f"operator that could be kept. Use sdpa, flash attention or SequenceParallel, or set "
            f"TrainingMemory(remat=None)."
        )


def _checkpoints(decoder: nn.Module) -> bool:
    return any(getattr(m, "gradient_checkpointing", False) and hasattr(m, FUNCTION) for m in decoder.modules())
