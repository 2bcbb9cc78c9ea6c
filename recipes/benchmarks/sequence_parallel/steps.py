"""Two hundred steps of SmolLM2 on packed texts: two cards beside one, and one beside itself with other kernels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from hf_longctx.evaluation.rows import row

from .launching import Launcher
from .texts import MEAN, RANDOM, STEPS, TOKENS, packs, tokens
from .train import NOT_MEASURED
from .training import OURS, STOCK

TWO, BAR = "two cards", 2  # how far two runs that only round differently may lie from each other's spread


def rows(launcher: Launcher, model: str, documents: Path | None) -> Iterator[dict[str, Any]]:
    """One row: the mean difference between two cards and one, over that of two kernels on one card."""
    ids = tokens(model, documents) if documents else torch.arange(3, 300)  # a counting text, for --tiny
    total, steps, mean_log = (128, 6, 3.0) if launcher.tiny else (TOKENS, STEPS, MEAN)
    found: dict[str, list[float]] = {}
    why = None
    with tempfile.TemporaryDirectory() as folder:
        batches = Path(folder) / "batches.pt"
        torch.save(packs(ids, total, steps, mean_log), batches)
        given = {"model": model, "batches": str(batches)}
        samples = list(launcher.samples("training", 2, **given, lines=[TWO]))
        samples += launcher.side_by_side("training", [{**given, "lines": [line]} for line in (OURS, STOCK)])
        for sample in samples:
            if "losses" in sample:
                found[sample["line"]] = sample["losses"]
            why = why or sample.get("failed")
    what = f"{'random weights' if model == RANDOM else 'SmolLM2-135M'}, {steps} steps on packs of {total:,} tokens"
    what += ": mean difference of the loss between two cards and one, over that between two kernels on one"
    if len(found) < 3:
        yield row(what, None, "", bar=f"<= {BAR}", why=why or NOT_MEASURED, detail={"losses": found})
        return
    apart, noise = (difference(found[name], found[OURS]) for name in (TWO, STOCK))
    beside = {"two cards and one": apart, "two kernels": noise}
    beside |= {f"last loss, {name}": losses[-1] for name, losses in found.items()}
    yield row(what, apart / noise if noise else None, "", bar=f"<= {BAR}", beside=beside, detail={"losses": found})


def difference(a: list[float], b: list[float]) -> float:
    """The mean of the absolute differences."""
    return mean(abs(x - y) for x, y in zip(a, b, strict=True))
