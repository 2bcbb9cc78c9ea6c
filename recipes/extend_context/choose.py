"""The best of the settings that were screened, by a rule that is known before: its name, for `train --variant`.

    python -m recipes.extend_context.choose screen.json more.json
    python -m recipes.extend_context.choose screen.json --table          # all of them, the best first, for people

A setting counts if it reads far: its perplexity at the longest context is at most 0.997 of the stock model's at the
trained length, and at most 0.998 of its own there, as in what a long training must reach. Of those the best finds most
and forgets least: the share of pass keys and needles found, summed over the lengths that were screened, less ten times
the nats by which the stock model's own answers have become less likely. So a tenth of a nat weighs as much as all that
can be found at a length; answers that have become likelier are no gain. The nats are those of its likeliest answers, or
of its sampled ones where these lost more: what was trained towards the likeliest makes them likelier, and may yet have
moved away from its distribution. With shares of the stock weights (`averaged`), the variant that sets the share is
joined.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.config import variants_of
from recipes.extend_context.screen import FEW
from recipes.extend_context.settings import DEFAULT, read_config
from recipes.tables import print_table

FAR, NATS = 0.997, 10.0
OVER_ITSELF = 0.998
TOLD, SAMPLED = "nats on stock's answers", "nats on stock's sampled answers"
ROW = re.compile(r"(?P<name>[\w+.-]+)(, (?P<share>[\d.]+) of the stock weights)?: perplexity, .* over stock at \d+")


@dataclass(frozen=True)
class Screened:
    """A setting, and what was measured of it.

    Args:
        name: Variants that are joined by +.
        share: Of the stock weights in it, beyond what the variants say; 0: none.
        far: Perplexity at the longest context over the stock model's at its longest.
        own: The same over its own there.
        nats: That the stock model's answers have lost in likelihood, of the likeliest or the sampled ones.
        found: Pass keys and needles by length, as shares.
    """

    name: str
    share: float
    far: float
    own: float
    nats: float
    found: dict[str, float]

    @property
    def reads_far(self) -> bool:
        """Does it count?"""
        return self.far <= FAR and self.own <= OVER_ITSELF

    @property
    def value(self) -> float:
        """What the rule compares. Answers that have become likelier than the stock model's were are no gain."""
        return sum(self.found.values()) - NATS * max(self.nats, 0.0)


def screened(row: dict[str, Any], asked: int) -> Screened | None:
    """A row of a screen, for which `asked` pass keys and as many needles were asked at each length; None: another's."""
    named, beside = ROW.fullmatch(row["what"]), row["beside"]
    own = next((value for name, value in beside.items() if name.endswith(f"over itself at {_trained(row)}")), None)
    if named is None or row["value"] is None or own is None or TOLD not in beside:
        return None
    found: dict[str, float] = {}
    for name, value in beside.items():
        kind, _, length = name.partition(", ")
        if kind in ("passkey", "needle"):
            found[length] = found.get(length, 0.0) + value / asked / 2
    nats = max(beside[TOLD], beside.get(SAMPLED, beside[TOLD]))  # earlier files have no sampled ones
    return Screened(named["name"], float(named["share"] or 0), row["value"], own, nats, found)


def _trained(row: dict[str, Any]) -> str:
    """The length that the stock model was measured at, which a row's name ends with."""
    return str(row["what"]).rpartition(" ")[2]


def ranked(settings: Iterable[Screened]) -> list[Screened]:
    """The best first; those that do not read far last."""
    return sorted(settings, key=lambda one: (one.reads_far, one.value), reverse=True)


def variant(best: Screened, config: Path) -> str:
    """Its name for `--variant`, with the variant that gives it its share of the stock weights; "" for none.

    Raises:
        ValueError: No variant of the config has that share.
    """
    names = [] if best.name == "base" else [best.name]
    if best.share:
        own = next((name for name, change in variants_of(config).items() if change == {"averaged": best.share}), None)
        if own is None:
            raise ValueError(
                f"{best.name} with {best.share} of the stock weights is the best, and {config.name} has no variant "
                f"that sets averaged: {best.share} alone. Add one."
            )
        names.append(own)
    return "+".join(names)


def read(files: Iterable[Path], config: Path) -> list[Screened]:
    """All settings of some result files of `screen`; ValueError if there is none that tells all that is compared."""
    evaluation = read_config(config)["evaluation"]
    asked = evaluation["depths"] * min(evaluation["trials"], FEW["trials"])
    files = list(files)
    every = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]
    found = [one for row in every if (one := screened(row, asked)) is not None]
    if not found:
        names = ", ".join(map(str, files))
        raise ValueError(f"{names}: no row has perplexities, nats and what was found. Run screen with these settings.")
    return found


def told(one: Screened) -> list[str]:
    """A line of the table."""
    numbers = [f"{number:.3f}" for number in (one.far, one.own, one.nats)]
    found = ", ".join(f"{share:.0%} at {length}" for length, share in one.found.items())
    share = f", {one.share:g} of the stock weights" if one.share else ""
    return [f"{one.value:.3f}", "yes" if one.reads_far else "no", *numbers, found, f"{one.name}{share}"]


def main(arguments: list[str] | None = None) -> int:
    """The command; see the module's docstring. 1 if no setting reads far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="result files of recipes.extend_context.screen")
    parser.add_argument("--config", type=Path, default=DEFAULT, help="with the variants")
    parser.add_argument("--with", dest="also", default="", help="another variant, joined to the best one's name")
    parser.add_argument("--table", action="store_true", help="all settings, the best first")
    args = parser.parse_args(arguments)
    try:
        every = ranked(read(args.files, args.config))
        if args.table:
            print_table([["value", "reads far", "far", "over itself", "nats", "found", "setting"], *map(told, every)])
            return 0
        if not every[0].reads_far:
            print(f"Error: no setting reads far; --table tells of each. The first is {every[0].name}.", file=sys.stderr)
            return 1
        name = "+".join(part for part in (variant(every[0], args.config), args.also) if part)
        read_config(args.config, name or None)
        print(name)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
