"""Pictures of results for a card: curves by length, and grids of length and depth."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from .evidence import Evidence, free_name

logger = logging.getLogger(__name__)
_FEW = 2  # charts of one task: its curve and its grid; of many tasks their mean is drawn


@dataclass(frozen=True)
class Picture:
    """A picture of a card: the name of its file, what it shows, and the PNG."""

    name: str
    title: str
    png: bytes


def pictures_of(found: Evidence) -> list[Picture]:
    """The charts that `hf-longctx report` draws of a file; none of rows without lengths, or without matplotlib."""
    from ...evaluation.report import plots
    from ...evaluation.report.files import ResultFile
    from ...evaluation.report.sections import sections

    charts = [chart for one in sections([ResultFile(f"{found.name}.json", found.data)]) for chart in one.charts]
    shown = [chart for chart in charts if chart.on_page or len(charts) <= _FEW]
    if not shown:
        return []
    try:
        plots.require_matplotlib()
    except ImportError as error:
        logger.warning("The card has no pictures of %s. %s", found.source, error)
        return []
    names: list[str] = []
    for chart in shown:
        names.append(free_name(f"{found.name}-{chart.name.partition('-')[2]}", names))
    drawn = [plots.image(chart.draw()) for chart in shown]
    return [Picture(f"{n}.png", chart.title, png) for n, chart, png in zip(names, shown, drawn, strict=True)]
