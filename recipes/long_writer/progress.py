"""What of a chain is done, the scores of its models and its stages, so that an interrupted one goes on from there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_longctx.storage.cells import CellStore
from recipes.long_writer.settings import telling
from recipes.long_writer.stage import decides
from recipes.resuming import check_fresh, check_same, fingerprints

Report = dict[str, Any]
SCORES = "scores"  # the folder


def begun(out: Path) -> bool:
    """Is there a chain in a folder to go on with, its scores or one of its stages?"""
    return (out / SCORES).is_dir() or any(out.glob("*/settings.json"))


@dataclass(frozen=True)
class Sizes:
    """The scores of a model that are kept, one size at a time.

    Args:
        store: Where.
        name: Of the model.
    """

    store: CellStore
    name: str

    def __contains__(self, size: str) -> bool:
        return [self.name, size] in self.store

    def run(self, size: str, measure: Callable[[], Report]) -> Report:
        """Those of a size: kept ones, or measured now."""
        if size in self:
            print(f"the scores of {self.name} ({size}) are complete: skipped", flush=True)
        return dict(self.store.run([self.name, size], measure))


class Progress:
    """Keeps the scores of each model, size by size, in the folder `scores` of a chain's, and knows its finished stages.

    Each model has a file of its own, so that several processes can score models of one chain at the same time.

    Args:
        config: The recipe's settings.
        stages: The names of those that are to come.
        resume: Go on with what is there; else begin anew.

    Raises:
        ValueError: There is a training and it is not to be resumed, there is nothing to resume, or it began with other
            settings.
    """

    def __init__(self, config: Mapping[str, Any], stages: list[str], *, resume: bool) -> None:
        self.config, self.out, self.resume = config, Path(config["out"]), resume
        for name in stages:
            check_fresh(self.out / name, resume)
        if resume and not begun(self.out):
            raise ValueError(f"--resume: {self.out} holds no chain to go on with. Leave it out to begin one.")
        folder = self.out / SCORES
        for file in folder.glob("*.jsonl"):
            if resume:
                self._store(file)  # other settings are told now
            else:
                file.unlink()
        folder.mkdir(parents=True, exist_ok=True)

    def _store(self, file: Path) -> CellStore:
        told = {key: value for key, value in telling(self.config).items() if key != "out"}
        return CellStore(file, told, other="another folder, without --resume")

    def sizes(self, name: str) -> Sizes:
        """The scores of a model, size by size."""
        return Sizes(self._store(self.out / SCORES / f"{re.sub(r'[^a-zA-Z0-9_.-]+', '-', name)}.jsonl"), name)

    def stage(self, name: str, start: str, train: Callable[..., Report]) -> Report:
        """The report of a stage: that of a finished one, or of `train`, which is told whether to `resume`."""
        out = self.out / name
        # the report is written when the model is saved
        if self.resume and (out / "report.json").exists() and (out / "model").exists():
            check_same(out, fingerprints(decides(self.config, name, start)), besides=("data",))
            print(f"{name} is complete in {out}: skipped", flush=True)
            return dict(json.loads((out / "report.json").read_text(encoding="utf-8")))
        before = self.resume and any((out / "run").glob("checkpoint-*"))
        if before:
            print(f"{name} goes on from its last checkpoint in {out}", flush=True)
        return train(resume=before)
