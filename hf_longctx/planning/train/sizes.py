"""What a model's size means for training, read from the model on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...anatomy import attention_layers, decoder_layers, find_decoder
from ...ops.rms_norms import RMSNormForm, form_of, may_be_rms_norm
from ..shape import Shape, measure
from .precisions import PRECISIONS


@dataclass(frozen=True)
class TrainingSizes:
    """A model's sizes in training.

    Args:
        shape: Its sizes as it reads.
        normed: Dims that the norms of a layer normalise, together: of the hidden state, of queries and of keys.
        layer: Parameters of the largest layer.
        mlp: Of these, outside attention.
        linear: Inputs and outputs of the linear maps of all layers, which is a rank-1 adapter's parameters.
        tied: The head is the embedding.
        window: Layers of which none sees more than its window.
        fused_norms: What its RMS norms compute, if they can be one kernel each.
    """

    shape: Shape
    normed: int
    layer: int
    mlp: int
    linear: int
    tied: bool
    window: bool
    fused_norms: frozenset[RMSNormForm]

    @property
    def queries(self) -> int:
        """Query dims of the widest layer."""
        return self.shape.widest.heads * self.shape.widest.head_dim

    @property
    def keys(self) -> int:
        """Key dims of the widest layer; latent ones are expanded to all heads."""
        return self.shape.widest.kv_heads * self.shape.widest.head_dim

    @property
    def outside(self) -> int:
        """Parameters of embedding and head."""
        return self.shape.lm_head * (1 if self.tied else 2)

    def can_fuse_norms(self, precision: str) -> bool:
        """Whether `TrainingMemory(fused_norms=True)` finds one that it can fuse, in a key of `PRECISIONS`."""
        dtype = torch.bfloat16 if PRECISIONS[precision].residual == 2 else torch.float32
        return any(form.fits(dtype) for form in self.fused_norms)

    def adapter(self, rank: int) -> int:
        """Parameters of adapters of this rank on every linear map of the layers."""
        return rank * self.linear


def sizes_of(model: Any) -> TrainingSizes:
    """The sizes of a model built by `shape.build`."""
    shape, decoder = measure(model), find_decoder(model)
    attention = set(attention_layers(decoder))
    layers = decoder_layers(decoder)
    largest: Any = max(layers, key=_count)
    inside = sum(_count(part) for part in largest.modules() if part in attention)
    of_layers = [p for layer in layers for p in layer.parameters()]
    return TrainingSizes(
        shape=shape,
        normed=_normed(largest, attention, shape),
        layer=_count(largest),
        mlp=_count(largest) - inside,
        linear=sum(sum(p.shape[-2:]) * p.shape[:-2].numel() for p in of_layers if p.dim() >= 2),
        tied=bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False)),
        window=all(layer.span is not None for layer, _ in shape.layers),
        fused_norms=frozenset(
            form for part in largest.modules() if may_be_rms_norm(part) and not isinstance(form := form_of(part), str)
        ),
    )


def _normed(layer: Any, attention: set[Any], shape: Shape) -> int:
    """Of the layer's norms, by their weights; those in attention are of queries and keys, whatever they share."""
    inside = {p for part in layer.modules() if part in attention for p in part.parameters()}
    norms = {p for name, p in layer.named_parameters() if p.dim() == 1 and not name.endswith("bias")}
    outside = sum(p.numel() == shape.hidden for p in norms - inside)
    wide = shape.widest
    of_heads = (wide.heads + wide.kv_heads) * wide.head_dim if norms & inside else 0
    return max(1, outside) * shape.hidden + of_heads


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())
