"""Draws docs/figures/sequence_parallel.png: the losses of training on two cards and on one, and how far they differ.

python -m recipes.benchmarks.sequence_parallel.figure
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hf_longctx.evaluation.report import plots

from ..reading import RESULTS
from .steps import TWO
from .training import OURS, STOCK

SOURCE = RESULTS / "sequence_parallel_steps.json"
FIGURE = RESULTS.parents[2] / "docs/figures/sequence_parallel.png"
STYLES = {STOCK: plots.LINES[0], OURS: plots.LINES[3], TWO: plots.LINES[2]}


def stamp(source: Path = SOURCE) -> str:
    """What the picture was drawn from, in its metadata."""
    return hashlib.sha256(json.dumps(_losses(source)).encode()).hexdigest()


def figure(source: Path = SOURCE) -> Any:
    """Two panels: the losses, which cover each other, and their differences to one card."""
    losses, hardware = _losses(source), json.loads(source.read_text(encoding="utf-8"))["hardware"]
    made = plots.require_matplotlib()(figsize=(9.5, 6), layout="constrained")
    above, below = made.subplots(2, 1, sharex=True)
    for name, style in STYLES.items():
        plain = style | {"marker": "", "lw": 1.2}
        steps = range(1, len(losses[name]) + 1)
        above.plot(steps, losses[name], label=name, **plain)
        if name != OURS:
            apart = [a - b for a, b in zip(losses[name], losses[OURS], strict=True)]
            below.plot(steps, apart, label=f"{name} – {OURS}", **plain)
    above.set_ylabel("Loss")
    below.set_ylabel("Difference of the loss")
    below.set_xlabel("Step")
    for axes in (above, below):
        axes.grid(True, color="#e5e7eb", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    made.suptitle(f"SmolLM2-135M on packed texts, 8k tokens a step, {hardware}")
    return made


def _losses(source: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads(source.read_text(encoding="utf-8"))["rows"][0]["detail"]["losses"]
    return found


if __name__ == "__main__":
    plots.save(figure(), FIGURE, metadata={"Source": stamp()})
