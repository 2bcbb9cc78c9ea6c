"""The settings that trade memory for time, alone and together, and the cheapest of them that make a run fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ..hardware import Machine
from .exchange import kind_of, lacks_heads
from .fits import Room, fits, longest
from .memory import Need, need
from .run import TILE, TrainingRun
from .seconds import StepTime, step_seconds
from .sizes import TrainingSizes

AS_ASKED = "as asked"
MOST_GPUS = 8


@dataclass(frozen=True)
class Change:
    """Settings of `TrainingRun`: what they are, as a flag, and as settings of a trainer."""

    settings: tuple[tuple[str, Any], ...]
    flag: str
    python: str


CHANGES = (
    Change((("chunked_loss", True),), "--chunked-loss", "TrainingMemory(chunked_loss=True)"),
    Change((("fused_norms", True),), "--fused-norms", "TrainingMemory(fused_norms=True)"),
    Change((("checkpointing", True),), "--checkpointing", "gradient_checkpointing=True"),
    Change((("tile", TILE),), f"--tile {TILE}", f"TrainingMemory(tile={TILE})"),
    Change((("offload", True),), "--offload", "gradient_checkpointing_kwargs={'offload': True}"),
    Change((("keep_on_host", True),), "--keep-on-host", "TrainingMemory(remat='attention', offload=True)"),
    Change((("remat", None), ("keep_on_host", False)), "--remat none", "TrainingMemory(remat=None)"),
    Change((("remat", "attention"),), "--remat attention", "TrainingMemory(remat='attention')"),  # for its time
    Change((("kind", "ring"),), "--kind ring", "SequenceParallel(kind='ring')"),
    Change((("shard", True),), "--shard", "FSDP2"),
)


@dataclass(frozen=True)
class TrainOption:
    """A run, what it needs, how long its step takes, and the longest text that would fit.

    Args:
        flags, python: What differs from the run that was asked for, as flags and as settings of a trainer.
        lacks: What it lacks to fit; "" if it fits.
        longest_tokens: None: over `LONGEST`.
    """

    flags: str
    python: str
    run: TrainingRun
    need: Need
    time: StepTime
    lacks: str
    longest_tokens: int | None


@dataclass(frozen=True)
class FitSearch:
    """Options of a model on a machine.

    Args:
        sizes: Of the model.
        machine: The cards.
        room: Their memory, and their host's.
        only: The settings that may change. None: all.
    """

    sizes: TrainingSizes
    machine: Machine
    room: Room
    only: frozenset[str] | None = None

    def option(self, run: TrainingRun, changes: tuple[Change, ...] = ()) -> TrainOption:
        """Everything about a run with these changes."""
        settings = {name: value for change in changes for name, value in change.settings}
        run = run.but(**settings)
        needed = need(self.sizes, run)
        return TrainOption(
            " ".join(change.flag for change in changes) or AS_ASKED,
            " and ".join(change.python for change in changes),
            run,
            needed,
            step_seconds(self.sizes, run, self.machine),
            self.room.why_not(needed, run.gpus // run.hosts),
            longest(self.sizes, run, self.room),
        )

    def singles(self, run: TrainingRun) -> list[TrainOption]:
        """Every single change that can be made."""
        return [self.option(run, (change,)) for change in self._possible(run)]

    def cheapest(self, run: TrainingRun) -> TrainOption | None:
        """The fewest changes that make the run fit, of these the quickest; more cards if no changes do."""
        found = self._fewest(run)
        for gpus in (2, 4, MOST_GPUS):
            if not found and self.only is None and gpus > run.gpus and run.ranks == run.gpus:
                kind = "auto" if run.kind == "stock" else run.kind
                settings = (("gpus", gpus), ("degree", None), ("kind", kind))
                found = self._fewest(run, (Change(settings, f"--gpus {gpus}", f"SequenceParallel(degree={gpus})"),))
        return min((self.option(run, each) for each in found), key=lambda option: option.time.step, default=None)

    def _fewest(self, run: TrainingRun, first: tuple[Change, ...] = ()) -> list[tuple[Change, ...]]:
        """The smallest sets of changes that make the run fit, each with those that come first; none: []."""
        possible = list(self._possible(run))
        for count in range(0 if first else 1, len(possible) + 1):
            sets = [(*first, *more) for more in combinations(possible, count)]
            found = [each for each in sets if self._serves(run, each)]
            if found:
                return found
        return []

    def _serves(self, run: TrainingRun, changes: tuple[Change, ...]) -> bool:
        try:
            changed = run.but(**{name: value for change in changes for name, value in change.settings})
        except ValueError:  # changes that exclude each other
            return False
        return not lacks_heads(self.sizes, changed) and fits(self.sizes, changed, self.room)

    def _possible(self, run: TrainingRun) -> Iterator[Change]:
        for change in CHANGES:
            settings = dict(change.settings)
            if self.only is not None and not settings.keys() <= self.only:
                continue
            if all(getattr(run, name) == value for name, value in settings.items()):
                continue
            if ("keep_on_host" in settings and not run.remat) or ("tile" in settings and run.tile):
                continue
            if "fused_norms" in settings and not self.sizes.can_fuse_norms(run.precision):
                continue
            if "kind" in settings and kind_of(self.sizes, run) in ("stock", "none", "halo", "ring"):
                continue
            if not run.checkpointing and ("offload" in settings or settings.get("remat")):
                continue
            if "shard" in settings and run.gpus == 1:
                continue
            yield change
