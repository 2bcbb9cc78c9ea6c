"""Short answers first: each step draws from the packs of the shortest answers, and in the end from all.

Competence-based curriculum learning (Platanios et al. 2019, https://arxiv.org/abs/1903.09848): competence is the part
of the examples, in order of difficulty, that may be drawn. It grows with the square root of the time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Sampler

from hf_longctx.parallel.model.documents import IGNORED
from hf_longctx.training.packing import pack

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object

COLUMNS = ("input_ids", "labels", "seq_lengths")  # of TRL's packed data sets
STAGES = 8  # packs hold answers of about one length each


def packs_by_length(documents: Sequence[dict[str, Any]], length: int, stages: int = STAGES) -> list[dict[str, Any]]:
    """Packs of at most `length` tokens, those of the shortest answers first; rows of arrays, with TRL's columns.

    Documents are packed with those whose answers are about as long, each stage by best-fit-decreasing.
    """
    ordered = sorted(documents, key=lambda one: np.count_nonzero(np.asarray(one["labels"]) != IGNORED))
    edges = [len(ordered) * stage // stages for stage in range(stages + 1)]
    some = [ordered[start:end] for start, end in pairwise(edges) if start < end]
    packs = (row for stage in some for row in pack(stage, length))
    return [{name: np.asarray(row[name], dtype=np.int32) for name in COLUMNS} for row in packs]


def competence(share: float, start: float, full: float) -> float:
    """The part of the examples that may be drawn when so much of the training is done.

    Args:
        share: 0 to 1.
        start: What may be drawn at first.
        full: The share at which all may be drawn.
    """
    grown = 1.0 if share >= full else share / full
    return min(1.0, math.sqrt(grown * (1 - start**2) + start**2))


class ShortFirst(Sampler[int]):
    """Numbers of packs, in order of length, drawn without repetition from those that may be drawn.

    Args:
        packs: How many there are.
        draws: How many are drawn.
        share: Which part of the training is done when the draw of this number comes.
        start: See `competence`.
        full: Likewise.
        seed: Of the draws.
    """

    def __init__(
        self, packs: int, draws: int, share: Callable[[int], float], *, start: float, full: float, seed: int
    ) -> None:
        self.packs, self.draws, self.share = packs, draws, share
        self.start, self.full, self.seed = start, full, seed

    def __len__(self) -> int:
        return self.draws

    def __iter__(self) -> Iterator[int]:
        rng, fresh, reached = random.Random(self.seed), list[int](), 0
        for draw in range(self.draws):
            allowed = max(1, math.ceil(competence(self.share(draw), self.start, self.full) * self.packs))
            fresh += range(reached, allowed)
            reached = max(reached, allowed)
            if not fresh:  # each was drawn: once more
                fresh = list(range(reached))
            at = rng.randrange(len(fresh))
            fresh[at], fresh[-1] = fresh[-1], fresh[at]
            yield fresh.pop()


class ShortFirstMixin(Base):
    """Put before a Trainer, gives it a sampler.

    Args:
        sampler: Of numbers of rows of `train_dataset`.
    """

    def __init__(self, *args: Any, sampler: Sampler[int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sampler = sampler

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler[int]:
        return self._sampler
