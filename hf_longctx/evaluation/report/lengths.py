"""The figure of asked and written words: a scatter on logarithmic axes, beside writers that read no length."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..benchmarks.longwriter import words_score
from ..writing import ALWAYS, length_baselines
from .plots import LINES, MANY, figure_title, new_figure

DODGE = 1.045  # of the asked words, by which configurations stand beside each other
FEW = 12  # asked lengths, up to which the medians of a configuration are joined
GREY = "#6b7280"


class Written(NamedTuple):
    """Words of an answer.

    Args:
        asked: Words asked for.
        words: Words written.
        ended: Whether it ended by itself; None where that is not known.
    """

    asked: int
    words: int
    ended: bool | None = None


def length_figure(written: Mapping[str, Sequence[Written]], *, title: str = "", subtitle: str = "") -> Any:
    """Asked and written words, both logarithmic, one colour per configuration.

    The legend has the mean S_l of each, and with 0 for answers that did not end by themselves, which are crosses. A
    line and a band are two writers that read no length, with their S_l for the same requests: one always writes 1,000
    words, one stops at random (the median, and the middle half of its answers).

    Args:
        written: Label to its answers.
        title: What is shown.
        subtitle: Its conditions (model, prompts).

    Returns:
        A matplotlib `Figure`; `plots.save` writes it.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is no answer, or a label has none.
    """
    if not written or not all(written.values()):
        raise ValueError(f"Nothing to draw: expected answers of each of {list(written) or 'the configurations'}.")
    every = [one for many in written.values() for one in many]
    figure = new_figure(7.6, 5.6)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = min(one.asked for one in every) / 1.25, max(one.asked for one in every) * 1.25
    bottom = min([low / 4, *(one.words / 1.25 for one in every if one.words)])
    _draw_baselines(axes, [one.asked for one in every], (low, high))
    known = [style["color"] for style in LINES[2:]]
    colours = known if len(written) <= len(known) else MANY
    for number, (label, many) in enumerate(written.items()):
        colour = colours[number % len(colours)]
        _draw_answers(axes, label, many, colour, DODGE ** (number - (len(written) - 1) / 2), bottom)
    axes.set_xlim(low, high)
    axes.set_ylim(bottom / 1.1, max(2 * high, *(1.25 * one.words for one in every)))
    _ticks(axes)
    axes.set_xlabel("Asked (words)")
    axes.set_ylabel("Written (words)")
    if any(one.ended is False for one in every):
        axes.plot([], [], "x", color=GREY, ms=5, label="did not end by itself")
    axes.grid(True, color="#e5e7eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    figure_title(figure, title, subtitle)
    return figure


def length_label(label: str, many: Sequence[Written]) -> str:
    """A configuration with its mean S_l, and with 0 for unended answers where ends are known."""
    scores = [100 * words_score(one.words, one.asked) for one in many]
    shown = f"S_l {statistics.fmean(scores):.0f}"
    if all(one.ended is not None for one in many):
        ended = [score * bool(one.ended) for score, one in zip(scores, many, strict=True)]
        shown += f", unended as 0: {statistics.fmean(ended):.0f}"
    return f"{label} ({shown})"


def _draw_baselines(axes: Any, asked: Sequence[int], ends: tuple[float, float]) -> None:
    always, at_random = (f"{name} (S_l {100 * score:.0f})" for name, score in length_baselines(asked).items())
    axes.plot(ends, ends, color="#111827", lw=1.2, label="as asked", zorder=1.5)
    axes.plot(ends, (ALWAYS, ALWAYS), color=GREY, lw=1.5, ls="--", label=always, zorder=1.4)
    # an exponential distribution of mean 1 has these quartiles
    quarter, half, most = (-math.log(1 - share) for share in (0.25, 0.5, 0.75))
    axes.plot(ends, [half * one for one in ends], color=GREY, lw=1.5, ls=":", label=at_random, zorder=1.4)
    axes.fill_between(ends, [quarter * n for n in ends], [most * n for n in ends], color=GREY, alpha=0.18, lw=0)


def _draw_answers(axes: Any, label: str, many: Sequence[Written], colour: str, beside: float, bottom: float) -> None:
    """Points of one configuration; an answer without words lies on the lower edge."""
    for marker, unended in (("o", False), ("x", True)):
        some = [one for one in many if (one.ended is False) == unended]
        x, y = [one.asked * beside for one in some], [one.words or bottom for one in some]
        axes.plot(x, y, marker, color=colour, ms=4, alpha=0.45, mew=1, ls="")
    by_length: dict[int, list[int]] = {}
    for one in many:
        by_length.setdefault(one.asked, []).append(one.words)
    joined = sorted(by_length.items()) if len(by_length) <= FEW else []
    x, y = [n * beside for n, _ in joined], [statistics.median(words) or bottom for _, words in joined]
    axes.plot(x, y, "D-" if joined else "o", color=colour, ms=7, lw=2, mec="white", label=length_label(label, many))


def _ticks(axes: Any) -> None:
    from matplotlib.ticker import NullLocator

    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        ticks = [n for power in range(9) for n in (10**power, 2 * 10**power, 5 * 10**power) if low <= n <= high]
        axis.set_ticks(ticks, [f"{n:,}" for n in ticks])
        axis.set_minor_locator(NullLocator())
