"""What the tasks that are measured alone share: costs of cells, a table by length, a figure beside the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from . import plots


def cost(found: Mapping[str, Sequence[Mapping[str, Any] | None]]) -> dict[str, dict[str, float | None]]:
    """Seconds summed and peak memory by configuration, for those whose values are all there."""
    done = {name: [value for value in many if value] for name, many in found.items() if None not in many}
    return {
        "seconds": {name: sum(value["seconds"] for value in many) for name, many in done.items()},
        "peak_gib": {
            name: max((value["peak_gib"] or 0.0 for value in many), default=0.0) or None for name, many in done.items()
        },
    }


def table(results: Mapping[str, Any], unit: str, score: Callable[[Sequence[Mapping[str, Any]], str], str]) -> Table:
    """A rich table of a result file: one line per length, one column per configuration.

    Args:
        results: Its contents.
        unit: What is measured, for the title.
        score: The text of a cell, from the details of a length's rows and a configuration.
    """
    settings = results["settings"]
    drawn = Table(title=f"{results['model']}: {unit}", caption=f"{results['hardware']}, {settings['text']}")
    drawn.add_column("tokens", justify="right")
    for name in settings["configurations"]:
        drawn.add_column(name, justify="right", overflow="fold")
    by_length: dict[int, list[Mapping[str, Any]]] = {}
    for line in results["rows"]:
        by_length.setdefault(line["detail"]["length"], []).append(line["detail"])
    for length, details in by_length.items():
        texts = []
        for name in settings["configurations"]:
            seconds = sum(detail["seconds"].get(name, 0.0) for detail in details)
            peak = max((detail["peak_gib"].get(name) or 0.0 for detail in details), default=0.0)
            spent = f"{seconds:.1f} s" + (f", {peak:.1f} GiB" if peak else "")
            texts.append(f"{score(details, name)}\n[dim]{spent}[/dim]" if seconds else score(details, name))
        drawn.add_row(f"{length:,}", *texts)
    return drawn


def write_figure(out: Path, results: Mapping[str, Any], draw: Callable[[Mapping[str, Any]], Any]) -> None:
    """Draw `figure.png`, unless nothing fitted into memory or came out finite."""
    if any(value is not None for line in results["rows"] for value in (line["value"], *line["beside"].values())):
        plots.save(draw(results), out / "figure.png")
