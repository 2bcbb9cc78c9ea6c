"""The `attn_implementation` that the user chose: done by a kernel of hf_longctx, or refused by name."""

# D head dim
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import weight_of
from ..ops.kernels import KERNELS, Call
from ..ops.masks import Causal
from ..ops.positions import Positions

# transformers' name -> hf_longctx's kernel; a branch that it does not take goes to the fastest kernel that does
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
        reason = (
            "is a kernel from the Hub; hf_longctx attention needs the kernel's log-sum-exp, which Hub kernels need not "
            "return"
        )
    else:
        reason = "is not supported by hf_longctx"
    raise ValueError(
        f"attn_implementation={inner!r} {reason}. Load the model with attn_implementation='sdpa' (uses the fastest "
        f"available kernel) or another of {', '.join(KERNEL_OF)}."
    )


def check_device(inner: str, module: nn.Module, head_dim: int) -> None:
    """ValueError where the kernel for this name cannot run at all on a module's device, or is not installed."""
    name, weight = KERNEL_OF[inner], weight_of(module)
    if name in ("auto", "reference") or weight.device.type == "meta":  # its first forward says
        return
    # fp32 weights may yet run under autocast
    half = weight.dtype if weight.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    like = torch.empty(1, 1, 1, head_dim, dtype=half, device=weight.device)
    pos = torch.zeros(1, 1, dtype=torch.long, device=weight.device)
    call = Call(Positions(pos, pos, same_rows=True, consecutive=True, padded=False), Causal(), 1.0)
    reason = KERNELS[name].unsupported_reason(call, like, like)
    if reason is not None:
        raise ValueError(
            f"attn_implementation={inner!r} is unavailable here: hf_longctx does it with its kernel {name!r}, and "
            f"{reason}. Fix that, or load the model with attn_implementation='sdpa'."
        )


def checked(
    module: nn.Module, query: Tensor, scaling: float | None, dropout: float, more: dict[str, Any]
) -> tuple[Tensor, float]:
    """The queries and the scale of a call with transformers' attention signature.

    ValueError for what hf_longctx attention does not do.
    """
    if dropout:
        raise ValueError(
            f"dropout={dropout}: hf_longctx attention does not implement dropout, which this model applies in "
            f"training. Load it with from_pretrained(..., attention_dropout=0.0), or whatever its config calls this."
        )
    if more.get("position_bias") is not None:
        raise ValueError(
            f"{type(module).__name__} passes position_bias, which hf_longctx attention does not implement."
        )
    if torch.is_autocast_enabled(query.device.type):
        # torch's own attention is cast by autocast; rotating with fp32 cosines has made queries and keys fp32
        query = query.to(torch.get_autocast_dtype(query.device.type))
    return query, query.shape[-1] ** -0.5 if scaling is None else scaling
