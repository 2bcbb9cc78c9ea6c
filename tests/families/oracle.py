"""LM-Infinite by brute force inside the models of many families: every pair of tokens, one distance at a time.

Shares no code with hf_longctx but the search for a model's modules. In its full-attention layers a model's rotary
function is replaced by one that leaves its tensors as they are, and its attention by the definition: a query meets a
key at the distance min(d, n_local) by the model's own function, applied to the query alone, on a slice of the head that
is written down here by hand. Learned sinks and soft-capping are written out.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from hf_longctx.anatomy import attention_layers, find_decoder, layer_type

FULL = "full_attention"
PAIR, ONE, COMPLEX, COMPLEX_HEADS_FIRST = (
    "q, k, cos, sin",
    "x, cos, sin",
    "q, k of (B, L, H, D)",
    "q, k of (B, H, L, D)",
)


@dataclass(frozen=True)
class Rotation:
    """How a family rotates the queries and keys of its full-attention layers.

    Args:
        function: its name in the file of the model.
        takes: the tensors that it takes.
        start, size: the slice of a head that it is given; all of it by default.
        rotates: False for a family whose full-attention layers have no positions.
        settings: of the tiny model, beyond the census's.
    """

    function: str = "apply_rotary_pos_emb"
    takes: str = PAIR
    start: int = 0
    size: int | None = None
    rotates: bool = True
    settings: dict[str, Any] = field(default_factory=dict)


INTERLEAVED = Rotation("apply_rotary_pos_emb_interleave", start=8, size=8)
ROTATIONS = {
    "llama": Rotation(),
    "phi": Rotation(size=8),
    "stablelm": Rotation(size=4),
    "persimmon": Rotation(size=8),
    "gemma2": Rotation(),
    "gpt_oss": Rotation(),
    "flint": Rotation(rotates=False),
    "granite_swa": Rotation(),
    "gemma3n_text": Rotation(takes=ONE),
    "gemma4_text": Rotation(takes=ONE),
    "deepseek_v2": Rotation("apply_rotary_emb", COMPLEX_HEADS_FIRST, start=8, size=8),
    "deepseek_v3": INTERLEAVED,
    "glm4_moe_lite": INTERLEAVED,
    "minicpm3": Rotation(start=8, size=8),
    "dots3_note_text": INTERLEAVED,
    "mimo_v2_flash": Rotation(),
    "llama4_text": Rotation("apply_rotary_emb", COMPLEX, settings={"no_rope_layers": [1, 1, 1, 0]}),
    "diffllama": Rotation(),
    "jetmoe": Rotation(),
    "beam": Rotation(rotates=False),
    "falcon_h1": Rotation(),
}


class BruteForce:
    """The model of a family under LM-Infinite by definition: `with BruteForce(...).inside(): model(...)`.

    Args:
        model: as the census builds it.
        rotation: of its family.
        pos_BL: each token's position among the real tokens of its row; -1 for padding.
        n_global: first tokens that stay visible.
        n_local: tokens back to which a query sees, and the largest distance.
    """

    def __init__(self, model: Any, rotation: Rotation, pos_BL: Tensor, n_global: int, n_local: int) -> None:
        self.model, self.rotation, self.pos_BL = model, rotation, pos_BL
        self.n_global, self.n_local = n_global, n_local
        self.decoder: Any = find_decoder(model)
        self.layers: list[Any] = [m for m in attention_layers(self.decoder) if layer_type(m) in (FULL, "hybrid")]
        modeling = sys.modules[type(self.layers[0]).__module__]
        self.rotary, self.eager = getattr(modeling, rotation.function), modeling.eager_attention_forward
        self.modeling, self.current = modeling, None  # the full-attention layer that is running

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Replaced in the block, as before after it."""
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")  # calls the function of the model's own file
        try:
            with ExitStack() as stack:
                stack.enter_context(patch.object(self.modeling, self.rotation.function, self.unrotated))
                stack.enter_context(patch.object(self.modeling, "eager_attention_forward", self.attention))
                for layer in self.layers:
                    stack.callback(layer.register_forward_pre_hook(lambda module, _: self.enter(module)).remove)
                    stack.callback(layer.register_forward_hook(lambda *_: self.enter(None)).remove)
                yield
        finally:
            self.model.set_attn_implementation(before)

    def enter(self, module: nn.Module | None) -> None:
        """From here on this full-attention layer runs, or none."""
        self.current = module

    def unrotated(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the rotary function."""
        if self.current is None:
            return self.rotary(*args, **kwargs)
        return args[0] if self.rotation.takes == ONE else args[:2]

    def attention(
        self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float | None = None, **more: Any
    ) -> tuple[Tensor, None]:
        """In place of the attention function: softmax over all pairs that LM-Infinite sees."""
        if module is not self.current:
            return self.eager(module, q, k, v, mask, scaling=scaling, **more)
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        real = self.pos_BL >= 0
        distance = self.pos_BL[:, :, None] - self.pos_BL[:, None, :]
        first = real & (self.pos_BL < self.n_global)
        seen = real[:, :, None] & real[:, None, :] & (distance >= 0)
        seen &= (distance < self.n_local) | first[:, None, :]
        k_at_0 = self.rotated(module, k, 0)
        scores = torch.zeros(*q.shape[:3], k.shape[2])
        for d in range(self.n_local + 1):
            at_d = self.rotated(module, q, d) @ k_at_0.transpose(-1, -2)
            scores = torch.where((distance.clamp(max=self.n_local) == d)[:, None], at_d, scores)
        scores = scores * (q.shape[-1] ** -0.5 if scaling is None else scaling)
        if more.get("softcap") is not None:
            scores = more["softcap"] * torch.tanh(scores / more["softcap"])
        weights = scores.masked_fill(~seen[:, None], float("-inf")).exp()
        total = weights.sum(-1, keepdim=True)
        if more.get("s_aux") is not None:
            total = total + more["s_aux"].exp().view(1, -1, 1, 1)
        out = weights @ v / total.where(real[:, None, :, None], 1)  # padding sees nothing
        return out.transpose(1, 2).contiguous(), None

    def rotated(self, module: Any, x: Tensor, position: int) -> Tensor:
        """Heads (B, H, L, D) as if all were at one position."""
        rule = self.rotation
        if not rule.rotates or not getattr(module, "use_rope", True):
            return x
        embed = self.decoder.rotary_emb
        kind = (FULL,) if "layer_type" in inspect.signature(embed.forward).parameters else ()
        angles = embed(x, torch.full((1, x.shape[2]), position), *kind)
        end = None if rule.size is None else rule.start + rule.size
        part = x[..., rule.start : end]
        if rule.takes == PAIR:
            part = self.rotary(part, part, *angles)[0]
        elif rule.takes == ONE:
            part = self.rotary(part.transpose(1, 2), *angles, unsqueeze_dim=2).transpose(1, 2)
        elif rule.takes == COMPLEX:
            part = self.rotary(part.transpose(1, 2), part.transpose(1, 2), angles)[0].transpose(1, 2)
        else:
            part = self.rotary(part, part, angles)[0]
        return torch.cat([x[..., : rule.start], part, x[..., x.shape[-1] if end is None else end :]], -1)
