"""The self-check: does attention over un-rotated keys give what the model's own attention gives?

Families differ in ways that no attribute shows (some normalise after rotating, some rotate only a slice before the
shared function). Eight tokens through one layer, both ways, settle it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .branches import Branch, Causal, attend

if TYPE_CHECKING:
    from .positions import Tower
    from .read import Read

# the two ways differ by rounding only; a wrong anatomy differs by its whole size
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}


class _CausalOnly:
    """What a method is to the attention function, with nothing changed: plain causal attention in one branch."""

    name = "parity check"

    def attention(self, read: Read) -> Tensor:
        q_rope, k_rope = read.true_ropes()
        keys = read.k_BGSD, read.v_BGSD, read.q_pos_BL, read.k_pos_BS
        return attend([Branch(read.q_BHLD, *keys, Causal(), q_rope, k_rope)], scale=read.scale)


def eager_causal(hidden_BLX: Tensor) -> Tensor:
    """The additive causal mask (1, 1, L, L) that transformers' eager attention needs to be told."""
    L = hidden_BLX.shape[1]
    return torch.full((1, 1, L, L), float("-inf"), device=hidden_BLX.device, dtype=hidden_BLX.dtype).triu(1)


def probe(width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Hidden states for the check: different ones, since equal tokens attend alike wherever they stand."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(1, 8, width, generator=generator, device=device, dtype=torch.float32).to(dtype)


@torch.no_grad()
def check_parity(module: nn.Module, tower: Tower, hidden_1LX: Tensor) -> None:
    """ValueError with the reason unless the patched `module` gives its stock class's output for `hidden_1LX`."""
    from .positions import Step, stock_class

    stock = stock_class(module)
    pos = torch.arange(hidden_1LX.shape[1], device=hidden_1LX.device)[None]
    kwargs = {"attention_mask": eager_causal(hidden_1LX) if tower.inner == "eager" else None, "position_ids": pos}
    training = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        rope = tower.rotation(module, hidden_1LX, pos)
        step = Step((rope.cos, rope.sin), pos, False, False)
        identity = torch.ones_like(rope.cos), torch.zeros_like(rope.sin)
        truth = stock.forward(module, hidden_1LX, position_embeddings=step.embeddings, **kwargs)[0]
        plain = dataclasses.replace(tower, method=_CausalOnly(), step=None)  # type: ignore[arg-type]
        ours = stock.forward(module, hidden_1LX, position_embeddings=identity, longctx=(plain, step, None), **kwargs)[0]
    except Exception as error:
        raise ValueError(
            f"{stock.__name__}: hf_longctx cannot keep its keys un-rotated; its attention raised "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        for submodule, was in training:
            submodule.training = was
    off = float((ours.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-30))
    device = hidden_1LX.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_1LX.dtype
    if not off <= TOLERANCE.get(dtype, 6e-2):
        raise ValueError(
            f"{stock.__name__}: refused by the self-check. With keys kept un-rotated its attention is off by {off:.1e}"
            f" (relative), so it does more with rotated keys than attend. hf_longctx does not support this model."
        )
