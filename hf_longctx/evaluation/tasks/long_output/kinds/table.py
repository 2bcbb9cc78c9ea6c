"""The items of an HTML page as tab-separated lines."""

from __future__ import annotations

import random
from typing import ClassVar

from ..base import LongTask, Problem
from ..vocabulary import places


class TableTask(LongTask):
    """Name, year and price of every item, or of those that are new enough."""

    name: ClassVar[str] = "table"
    tag: ClassVar[str] = "tsv"
    tokens_per_line: ClassVar[float] = 17.0

    def build(self, rng: random.Random, lines: int) -> Problem:
        """A line of the answer is an item that the question asks for."""
        since = rng.choice((None, rng.randint(1920, 1960)))
        names, items = iter(places(rng, 3 * lines + 40)), []
        kept: list[str] = []
        for name in names:
            year, price = rng.randint(1900, 2024), f"{rng.randint(1, 999)}.{rng.randint(0, 99):02d}"
            items.append(f"<li><h3>{name}</h3><i>built {year}</i><b>EUR {price}</b></li>")
            if since is None or year >= since:
                kept.append(f"{name}\t{year}\t{price}")
            if len(kept) == lines:
                break
        which = "every item" if since is None else f"the items built in {since} or later"
        ask = f"Write {which}, in the page's order, as tab-separated lines: name, year, price without the currency."
        return self.problem("\n".join(["<ul>", *items, "</ul>"]), ask, kept)


LONG_TASKS = {"table": TableTask()}
