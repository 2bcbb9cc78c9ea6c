"""What a number takes in training: weights, gradients, optimizer states, and activations of a layer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Bytes of each kind of number, and how many bytes a decoder layer holds for each hidden dim and token.

    The latter were counted, tensor by tensor, in a step of transformers' Llama (`tests/planning/train/counted.py`).

    Args:
        summary: In words.
        weight: Of a parameter, with an fp32 copy for the optimizer if it has one.
        gradient: Of its gradient.
        moment: Of each number that the optimizer keeps of it.
        cast: Of its copy that autocast makes for a forward.
        residual: Of the hidden states between layers.
        activation: Of what linear maps and attention give.
        norm: What each norm of a layer keeps for its backward.
        mlp: Held besides by the backward of an MLP that computes all tokens at once.
        tile: The same where it computes tile by tile.
        before: Held besides by the backward of the norm before it, when the MLP's own is done.
        fused_norm: As `norm`, of a norm that is one kernel.
        fused_before: As `before`, of one.
    """

    summary: str
    weight: int
    gradient: int
    moment: int
    cast: int
    residual: int
    activation: int
    norm: int
    mlp: int
    tile: int
    before: int
    fused_norm: int
    fused_before: int

    @property
    def fused(self) -> Precision:
        """The same with norms that are one kernel each."""
        return dataclasses.replace(self, norm=self.fused_norm, before=self.fused_before)


PRECISIONS = {
    "bf16": Precision(
        summary="bf16 weights, gradients and optimizer states (8 bytes a parameter with AdamW)",
        weight=2, gradient=2, moment=2, cast=0, residual=2, activation=2, mlp=4, tile=6, norm=8, before=18,
        fused_norm=3, fused_before=4,
    ),
    "master": Precision(
        summary="bf16 weights and gradients, fp32 weights and states in the optimizer (16 bytes with AdamW)",
        weight=6, gradient=2, moment=4, cast=0, residual=2, activation=2, mlp=4, tile=6, norm=8, before=18,
        fused_norm=3, fused_before=4,
    ),
    "mixed": Precision(
        summary="fp32 weights under bf16 autocast, as Trainer(bf16=True) trains them (16 bytes, 18 in the forward)",
        weight=4, gradient=4, moment=4, cast=2, residual=4, activation=2, mlp=4, tile=10, norm=13, before=8,
        fused_norm=9, fused_before=8,
    ),
    "fp32": Precision(
        summary="fp32 throughout (16 bytes with AdamW)",
        weight=4, gradient=4, moment=4, cast=0, residual=4, activation=4, mlp=4, tile=8, norm=12, before=12,
        fused_norm=8, fused_before=8,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What an optimizer keeps: moments in the precision's bytes, bytes of its own, and moments in its step only."""

    moments: int = 0
    n_bytes: int = 0
    step: int = 0


OPTIMIZERS = {
    "adamw": Optimizer(moments=2),
    "adamw_foreach": Optimizer(moments=2, step=1),
    "adamw_8bit": Optimizer(n_bytes=2),
    "momentum": Optimizer(moments=1),
    "sgd": Optimizer(),
}
