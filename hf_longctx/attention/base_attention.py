"""The `attn_implementation` that the user chose, honoured by a kernel of ours or refused by name."""

# D head dim
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.kernels import KERNELS, Call
from ..ops.masks import Causal

# transformers' name -> our kernel; a branch that the kernel cannot express goes to the fastest one that can
KERNEL_OF = {
    "eager": "reference",
    "sdpa": "auto",
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn",
    "flash_attention_4": "flash_attn",
    "flex_attention": "flex",
}
# these two are called as they are where a method changes no attention; the others want masks of a kind of their own
PLAIN = ("eager", "sdpa")


def check_name(inner: str) -> None:
    """ValueError unless there is a kernel for this name."""
    if inner in KERNEL_OF:
        return
    if inner.startswith("paged|"):
        reason = "is for continuous batching, which brings a paged cache; methods of hf_longctx keep their own"
    elif "/" in inner:
        reason = "is a kernel from the Hub; attention in branches needs log-sum-exps, which it need not give"
    else:
        reason = "is none that hf_longctx has a kernel for"
    raise ValueError(
        f"attn_implementation={inner!r} {reason}. Load the model with attn_implementation='sdpa' (the fastest kernel "
        f"that there is) or another of {', '.join(KERNEL_OF)}."
    )


def check_device(inner: str, module: nn.Module, head_dim: int) -> None:
    """ValueError where the kernel for this name cannot run at all on a module's device, or is not installed."""
    name, weight = KERNEL_OF[inner], next(module.parameters())
    if name in ("auto", "reference") or weight.device.type == "meta":  # its first forward says
        return
    # fp32 weights may yet run under autocast
    half = weight.dtype if weight.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    like = torch.empty(1, 1, 1, head_dim, dtype=half, device=weight.device)
    pos = torch.zeros(1, 1, dtype=torch.long, device=weight.device)
    reason = KERNELS[name].refuses(Call(pos, pos, Causal(), 1.0, regular=True, padded=False), like, like)
    if reason is not None:
        raise ValueError(
            f"attn_implementation={inner!r} cannot be honoured: hf_longctx does it with its kernel {name!r}, and "
            f"{reason}. Mend that, or load the model with attn_implementation='sdpa'."
        )


def checked(
    module: nn.Module, query: Tensor, scaling: float | None, dropout: float, more: dict[str, Any]
) -> tuple[Tensor, float]:
    """The queries and the scale of a call with transformers' attention signature.

    ValueError for what attention in branches does not do.
    """
    if dropout:
        raise ValueError(f"dropout={dropout}: attention in branches has none. Set attention_dropout to 0.")
    for unsupported in ("softcap", "s_aux", "position_bias"):
        if more.get(unsupported) is not None:
            raise ValueError(f"{type(module).__name__} passes {unsupported}, which attention in branches does not do.")
    if torch.is_autocast_enabled(query.device.type):
        # torch's own attention is cast by autocast; rotating with fp32 cosines has made queries and keys fp32
        query = query.to(torch.get_autocast_dtype(query.device.type))
    return query, query.shape[-1] ** -0.5 if scaling is None else scaling
