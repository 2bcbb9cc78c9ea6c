"""The settings of a training."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from ..settings import is_whole
from .components import COMPONENTS


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Settings of `finetune`; the defaults are those of Long-CLIP's own training instructions, its batch aside.

    Args:
        batch: Pairs per process and step; at least `components` + 2, unless `gathered`. Long-CLIP's is 2,048 in all.
        epochs: Passes over the pairs.
        learning_rate: Its peak, after `warmup` steps; from there it falls as a cosine to 0.
        warmup: Steps in which it rises; at most a tenth of all.
        weight_decay: AdamW's. The kept rows do not decay.
        components: Primary components that short captions are matched with.
        gathered: Analyse the components of all processes' pairs together, not each process' own.
        short_weight: The weight of the short captions' part of the loss.
        label_smoothing: The published code's; the paper has none.
        keep: The number of first positions that do not train; by default those that stretching kept.
        lora: Rank of adapters on all layers instead of training them; positions train in any case. 0: train everything.
        truncate: Cut captions at the model's length instead of refusing them.
        save_every: Steps between two saved states.
        workers: Processes that load images, for each training process.
        seed: The seed of the order of the pairs.
    """

    batch: int = 256
    epochs: int = 6
    learning_rate: float = 1e-6
    warmup: int = 200
    weight_decay: float = 1e-2
    components: int = COMPONENTS
    gathered: bool = False
    short_weight: float = 1.0
    label_smoothing: float = 0.1
    keep: int | None = None
    lora: int = 0
    truncate: bool = False
    save_every: int = 1000
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            least = 1 if name in ("batch", "epochs", "components", "save_every") else 0
            if (least or name in ("warmup", "lora", "workers")) and not is_whole(value, least):
                raise ValueError(f"{name}={value!r}: expected a whole number from {least} on.")
        for name in ("learning_rate", "weight_decay", "short_weight", "label_smoothing"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r}: expected a number from 0 on. (YAML reads 1e-6 as a word: 1.0e-6.)")
        if self.label_smoothing >= 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}: expected a share below 1, such as 0.1.")
        if not self.gathered and self.batch < self.components + 2:
            raise ValueError(
                f"batch={self.batch} cannot carry components={self.components}: expected at least "
                f"{self.components + 2} pairs per process, or gathered=True on several processes."
            )
