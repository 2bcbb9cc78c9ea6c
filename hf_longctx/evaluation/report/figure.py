"""The figure of one result file: curves by length, or a grid where the task has depths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import plots
from .files import ResultFile
from .measured import measured


def write_figure(out: Path, results: Mapping[str, Any], title: str, conditions: str) -> None:
    """Draw `figure.png` of a run of one task, unless nothing fitted into memory or came out finite."""
    (task,) = measured([ResultFile("results.json", dict(results))])
    settings = results["settings"]
    curves = {name: task.curve(name) for name in task.configurations}
    if all(value is None for curve in curves.values() for value in curve.values()):
        return
    about = {
        "window": settings["window"],
        "title": title,
        "subtitle": f"{results['model']} on {results['hardware']}, {settings['text']}, {conditions}",
    }
    grids = {name: task.grid(name) for name in task.configurations}
    figure = plots.passkey_figure(grids, **about) if task.depths else plots.curve_figure(curves, **about)
    plots.save(figure, out / "figure.png")
