"""Does anything come between a layer's cache and its attention? Seen in a forward of a few tokens."""

# B batch, L tokens, X hidden width
from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from ..anatomy import weight_of
from ..attention.rerotate import angles_of
from ..attention.selfcheck import probe
from ..attention.subclass import stock_class
from ..attention.watch import Attended, Through, arguments, evaluating
from ..attention.ways import INTERFACE, named, reach_of
from ..ops.checked import checked_once
from ..upstream.caches import given_cache

REMEDY = "Generate without a shared prefix."


class Watched(Through):
    """Stands for a layer's cache in a forward, and is handed what the layer attends to."""

    reason: str | None = "comes to no attention that can be reached"

    def see(self, key: Tensor, value: Tensor, attention_mask: Tensor | None, more: dict[str, Any]) -> Any:
        """Take what attention is called with; it goes no further."""
        kept = self.kept
        self.reason = None
        if kept is None or key is not kept[0] or value is not kept[1]:
            self.reason = "attends to something that it makes of the keys and values in its cache, as MLA does"
        elif more.get("s_aux") is not None:
            self.reason = "has learned attention sinks"
        elif more.get("softcap") is not None:
            self.reason = f"attends with logit soft-capping ({more['softcap']})"
        elif attention_mask is not None:
            self.reason = "attends under a mask of its own"
        raise Attended


def check_layer(module: Any, decoder: Any, implementation: str) -> None:
    """ValueError, with the reason, for a layer that attends otherwise than to its cache. `implementation` asks it."""
    reason = checked_once(module, "shares a prefix", lambda: _reason(module, decoder, implementation))
    if reason is not None:
        raise ValueError(
            f"{stock_class(module).__name__}: layer {module.layer_idx} {reason}, which is not supported with a shared "
            f"prefix. {REMEDY}"
        )


@torch.no_grad()
def _reason(module: Any, decoder: Any, implementation: str) -> str | None:
    stock, watched = stock_class(module), Watched()
    reach = reach_of(stock)
    if reach.way != INTERFACE:
        return f"does not call {INTERFACE}"
    like = probe(decoder.config.hidden_size, *_where(module, decoder))
    pos = torch.arange(like.shape[1], device=like.device)[None]
    handed = reach.given(angles_of(decoder).embeddings(module, like, pos))
    kwargs = {"attention_mask": None, "position_ids": pos, **given_cache(stock.forward, watched), **handed}
    kwargs = arguments(stock, kwargs)
    with evaluating(module), named(module, implementation), contextlib.suppress(Attended):
        module(like, shared=watched, **kwargs)
    return watched.reason


def _where(module: Any, decoder: Any) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a layer's inputs: its own weights may be offloaded, or quantised."""
    device = weight_of(module).device
    dtype = next((p.dtype for p in decoder.parameters() if p.is_floating_point()), torch.float32)
    return torch.device("cpu") if device.type == "meta" else device, dtype
