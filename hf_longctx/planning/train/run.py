"""`TrainingRun`: the settings of a run that decide what a step takes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ...near import did_you_mean
from .precisions import OPTIMIZERS, PRECISIONS, Optimizer, Precision

KINDS = ("auto", "gather", "ring", "ulysses", "stock")
CHUNK = 2048  # tokens whose logits exist at a time, in the chunked loss
TILE = 8192
CHOICES: dict[str, tuple[str | None, ...]] = {
    "precision": tuple(PRECISIONS),
    "optimizer": tuple(OPTIMIZERS),
    "kind": KINDS,
    "remat": (None, "attention"),
}


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One forward and backward of `tokens` tokens, one document, on GPUs that share it, and the optimizer's step.

    Args:
        tokens: Of the batch that the GPUs of a group share.
        gpus: Processes, one GPU each.
        degree: Of these, how many share a batch. None: all.
        precision: A key of `PRECISIONS`.
        optimizer: A key of `OPTIMIZERS`.
        checkpointing: Layers are computed again in backward.
        offload: The hidden states that checkpointing keeps lie on the host: transformers' own `offload`.
        chunked_loss: Logits exist for a few tokens at a time.
        tile: The MLP computes so many tokens at a time. None: all.
        remat: "attention": what attention computed is kept. None: it is computed again.
        keep_on_host: It is kept on the host.
        fused_norms: Norms are one kernel each.
        kind: How ranks exchange keys. "stock": attention is the model's own, on a card that shares nothing.
        shard: FSDP2 shards weights, gradients and states over all GPUs; else each has them.
        trained: Parameters of adapters, if these alone are trained. None: everything is.
        hosts: Among which the GPUs are spread evenly.
    """

    tokens: int
    gpus: int = 1
    degree: int | None = None
    precision: str = "bf16"
    optimizer: str = "adamw"
    checkpointing: bool = True
    offload: bool = False
    chunked_loss: bool = True
    tile: int | None = None
    remat: str | None = None
    keep_on_host: bool = False
    fused_norms: bool = False
    kind: str = "auto"
    shard: bool = False
    trained: int | None = None
    hosts: int = 1

    def __post_init__(self) -> None:
        for name in ("tokens", "gpus", "degree", "tile", "trained", "hosts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected a whole number, at least 1.")
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                near = did_you_mean(str(value), [str(one) for one in known])
                raise ValueError(f"{name}={value!r}: {near}expected one of {', '.join(map(str, known))}.")
        if self.gpus % self.ranks:
            raise ValueError(
                f"degree={self.degree}: {self.gpus} GPUs cannot be split into groups of {self.degree}. Choose a degree "
                f"that divides their number."
            )
        if self.kind == "stock" and self.ranks > 1:
            raise ValueError(
                f"kind='stock': {self.ranks} GPUs share a batch, which stock attention does not. Take auto."
            )
        if (self.offload or self.remat) and not self.checkpointing:
            name = "offload=True" if self.offload else f"remat={self.remat!r}"
            raise ValueError(f"{name} is for checkpointed layers. Set checkpointing=True, or leave it out.")
        if self.keep_on_host and not self.remat:
            raise ValueError("keep_on_host=True is for what remat='attention' keeps. Set that, or leave it out.")

    @property
    def ranks(self) -> int:
        """GPUs that share a batch."""
        return self.gpus if self.degree is None else self.degree

    @property
    def rows(self) -> float:
        """Tokens of a rank."""
        return self.tokens / self.ranks

    @property
    def numbers(self) -> Precision:
        """Bytes of each kind of number."""
        found = PRECISIONS[self.precision]
        return found.fused if self.fused_norms else found

    @property
    def keeps(self) -> Optimizer:
        """What its optimizer keeps."""
        return OPTIMIZERS[self.optimizer]

    def but(self, **changes: Any) -> TrainingRun:
        """The same with other settings."""
        return dataclasses.replace(self, **changes)
