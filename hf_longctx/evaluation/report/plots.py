"""Figures from measured numbers: perplexity against context, the passkey grid, and both side by side.

matplotlib is imported when a figure is drawn, and without pyplot: no global state, no display.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...storage.files import write_whole
from ...upstream.installing import Package, check_packages, install_extra

Curve = Mapping[int, float | None]
Shares = Mapping[tuple[int, float], float]  # share found (0 to 1) by length and depth
MATPLOTLIB = Package("figures are drawn by matplotlib", ("matplotlib.figure",), install_extra("evaluation"))
# The needle-in-a-haystack colours that readers of such grids know.
GRID_COLOURS = ["#F0496E", "#EBB839", "#0CD79F"]
# The second is a wide pale band for truncation, under the others: they often lie on it.
LINES: list[dict[str, Any]] = [
    {"color": "#6b7280", "marker": "s", "ls": "--", "lw": 2, "ms": 5},
    {"color": "#fbbf77", "marker": "^", "ls": "-", "lw": 5, "ms": 9, "zorder": 1.8},
    {"color": "#0b7a5c", "marker": "o", "ls": "-", "lw": 2, "ms": 4},
    {"color": "#4f46e5", "marker": "D", "ls": "-", "lw": 2, "ms": 4},
    {"color": "#be185d", "marker": "v", "ls": "-", "lw": 2, "ms": 4},
]


MANY = ["#6b7280", "#fbbf77", "#dc2626", "#ea580c", "#a16207", "#65a30d", "#0891b2", "#2563eb"]
MANY += ["#0b7a5c", "#10b981", "#7c3aed", "#be185d", "#111827", "#f472b6"]


def _styles(labels: Sequence[str]) -> list[dict[str, Any]]:
    """A style for each line: the known ones, grey and dashed for the stock model, the band for truncation only.

    Many lines have more colours with fewer frills.
    """
    if len(labels) > len(LINES):
        plain = [
            {"color": MANY[i % len(MANY)], "marker": "so^Dv<>pXhP*d"[i % 13], "lw": 1.6, "ms": 5}
            for i in range(len(labels))
        ]
        return [*LINES[:2], *plain[2:]]
    band = [bool(re.search(r"\b(last \d|truncat)", label)) for label in labels]
    stock = [not banded and label.startswith("stock") for label, banded in zip(labels, band, strict=True)]
    # without a stock line its style is the last but the band's
    others = iter([*LINES[2:], *([] if any(stock) else [LINES[0]]), LINES[1]])
    known = {which.index(True): style for which, style in ((stock, LINES[0]), (band, LINES[1])) if any(which)}
    return [known[i] if i in known else next(others) for i in range(len(labels))]


def curve_figure(
    curves: Mapping[str, Curve],
    *,
    share: bool = False,
    window: int | None = None,
    title: str = "",
    subtitle: str = "",
    size: tuple[float, float] = (7.6, 4.6),
) -> Any:
    """Perplexity against context length, both axes logarithmic, one line per configuration.

    Args:
        curves: Label to {context length in tokens: value}; a None is left out of its line.
        share: The values are shares found (0 to 1), on a linear axis.
        window: The trained length, marked by a vertical line.
        title: What is shown.
        subtitle: Its conditions (model, text, number of documents).
        size: Width and height in inches.

    Returns:
        A matplotlib `Figure`; `save` writes it.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    figure = new_figure(*size)
    axes = figure.subplots()
    draw_curves(axes, curves, window, share=share)
    if len(curves) > len(LINES):
        # a legend of that many names would cover the lines
        axes.get_legend().remove()
        lines = axes.get_legend_handles_labels()
        figure.legend(*lines, frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    _titles(axes, title, subtitle, width=int(size[0] * 12))
    return figure


def passkey_figure(
    grids: Mapping[str, Shares],
    *,
    window: int | None = None,
    title: str = "",
    subtitle: str = "",
    hidden: str = "key",
) -> Any:
    """Accuracy over length and depth, one panel per configuration, side by side: the passkey grid, the needle heat-map.

    Args:
        grids: Label to its cells. A cell that only other configurations have is drawn grey with a dash.
        window: As in `curve_figure`.
        title: As in `curve_figure`.
        subtitle: As in `curve_figure`.
        hidden: Name of the thing at the depth, for the axis: "key", "needle".
    """
    lengths, depths = _grid_axes(grids)
    # About 11 inches for three panels of eight lengths: small print stays readable at a README's width.
    width = max(2.0, 0.4 * len(lengths)) * len(grids) + 1.5
    figure = new_figure(min(13.0, max(5.5, width)), max(3.2, 0.38 * len(depths) + 1.8))
    panels = figure.subplots(1, len(grids), sharey=True, squeeze=False)[0]
    image = None
    for axes, (label, cells) in zip(panels, grids.items(), strict=True):
        image = _draw_grid(axes, cells, lengths, depths, window)
        axes.set_title(_wrapped(label, 34), fontsize=10, loc="left")
        axes.set_xlabel("Context (tokens)")
    panels[0].set_ylabel(f"Depth of the {hidden} (%)")
    _colour_bar(figure, image, list(panels))
    figure_title(figure, title, subtitle)
    return figure


def summary_figure(
    curves: Mapping[str, Curve],
    grids: Mapping[str, Shares],
    *,
    window: int | None = None,
    title: str = "",
    subtitle: str = "",
) -> Any:
    """Perplexity on the left, the passkey grids stacked on the right.

    Either alone misleads: a sliding window has flat perplexity and finds nothing outside itself.

    Args:
        curves: As in `curve_figure`.
        grids: As in `passkey_figure`.
        window: As in `curve_figure`.
        title: As in `curve_figure`.
        subtitle: As in `curve_figure`.
    """
    lengths, depths = _grid_axes(grids)
    figure = new_figure(11.0, 5.0)
    left, right = figure.subfigures(1, 2, width_ratios=[1.05, 1])
    axes = left.subplots()
    draw_curves(axes, curves, window)
    axes.set_title("Perplexity of the same last tokens", fontsize=11, loc="left")
    panels = list(right.subplots(len(grids), 1, sharex=True, squeeze=False)[:, 0])
    image = None
    for panel, (label, cells) in zip(panels, grids.items(), strict=True):
        image = _draw_grid(panel, cells, lengths, depths, window)
        panel.set_title(f"Passkey, {_wrapped(label, 60)}", fontsize=11, loc="left")
        panel.set_ylabel("Depth (%)")
    panels[-1].set_xlabel("Context (tokens)")
    _colour_bar(right, image, panels)
    figure_title(figure, title, subtitle)
    return figure


def save(figure: Any, path: str | Path, *, dpi: int = 160, metadata: Mapping[str, str] | None = None) -> None:
    """Write a figure in the format of the file's ending, whole or not at all (see `results.write_whole`).

    `metadata` is kept in the file, under names that its format knows (of a PNG: any).
    """
    kind = Path(path).suffix.lstrip(".") or "png"
    write_whole(path, image(figure, kind, dpi=dpi, metadata=metadata))


def image(figure: Any, kind: str = "png", *, dpi: int = 160, metadata: Mapping[str, str] | None = None) -> bytes:
    """What a file of the figure holds, in a format that matplotlib knows."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi, facecolor="white", metadata=dict(metadata or {}))
    return buffer.getvalue()


def tokens(n: int) -> str:
    """A token count for an axis: 512, 8k, 1.5k, 1M, in powers of two; whole millions as such, the rest in full."""
    if n and n % 1_000_000 == 0:
        return f"{n // 1_000_000}M"
    if n >= 1 << 10 and n % (1 << 9):
        return f"{n:,}"
    for size, unit in ((1 << 20, "M"), (1 << 10, "k")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:,}"


@lru_cache(maxsize=1024)
def grid_colour(share: float) -> str:
    """The colour of a cell with this share found (0 to 1), as "#rrggbb"; dark print is readable on all of them.

    It is that of the heat-maps, which matplotlib draws in 256 steps, but tables in a terminal do without matplotlib.
    """
    place = min(int(256 * min(max(share, 0.0), 1.0)), 255) / 255 * (len(GRID_COLOURS) - 1)
    first = min(int(place), len(GRID_COLOURS) - 2)
    ends = [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in GRID_COLOURS[first : first + 2]]
    mixed = (round(low + (high - low) * (place - first)) for low, high in zip(*ends, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def require_matplotlib() -> Any:
    """The class `Figure` of matplotlib, or an ImportError that says how to get it."""
    check_packages([MATPLOTLIB])
    from matplotlib.figure import Figure

    return Figure


def new_figure(width: float, height: float) -> Any:
    """An empty figure of a size in inches."""
    return require_matplotlib()(figsize=(width, height), layout="constrained")


def draw_curves(axes: Any, curves: Mapping[str, Curve], window: int | None, share: bool = False) -> None:
    """Curves as in `curve_figure`, on axes of the caller's."""
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    drawn = {label: {n: v for n, v in sorted(curve.items()) if v is not None} for label, curve in curves.items()}
    lengths = sorted({n for curve in drawn.values() for n in curve})
    if not lengths:
        raise ValueError(f"Nothing to draw: none of the curves {list(curves)} has a value.")
    for (label, curve), style in zip(drawn.items(), _styles(list(drawn)), strict=True):
        axes.plot(list(curve), list(curve.values()), label=_wrapped(label, 44), **style)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    ticks = _apart(lengths)
    axes.set_xticks(ticks, [tokens(n) for n in ticks], rotation=45 if len(ticks) > 9 else 0)
    if share:
        axes.set_ylim(-0.03, 1.03)
        axes.grid(True, color="#e5e7eb", lw=0.8)
    else:
        values = [v for curve in drawn.values() for v in curve.values()]
        low, high = min(values), max(values)
        wide = high > 10 * low
        axes.set_yscale("log")
        # A wide axis begins at a power of ten, so that its lowest line has a number below it.
        axes.set_ylim(10 ** math.floor(math.log10(low)) if wide else low / 1.15, high * (2 if wide else 1.15))
        axes.yaxis.set_major_formatter(FuncFormatter(_number))
        axes.yaxis.set_minor_formatter(NullFormatter() if wide else FuncFormatter(_number))
        axes.grid(True, which="major" if wide else "both", color="#e5e7eb", lw=0.8)
    if window is not None:
        axes.axvline(
            window, color="#374151", lw=1.2, ls=(0, (2, 2)), zorder=1.7, label=f"trained window, {tokens(window)}"
        )
    axes.set_xlabel("Context (tokens)")
    axes.set_ylabel("Share found" if share else "Perplexity")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _apart(lengths: list[int], most: int = 14) -> list[int]:
    """Lengths far enough from each other on a logarithmic axis for their labels."""
    gap = (lengths[-1] / lengths[0]) ** (1 / most)
    kept = lengths[:1]
    for n in lengths[1:]:
        if n >= kept[-1] * gap:
            kept.append(n)
    return kept


def _number(value: float, _: int | None = None) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _grid_axes(grids: Mapping[str, Shares]) -> tuple[list[int], list[float]]:
    cells = {cell for grid in grids.values() for cell in grid}
    if not cells:
        raise ValueError(f"Nothing to draw: none of the grids {list(grids)} has a cell.")
    return sorted({length for length, _ in cells}), sorted({depth for _, depth in cells})


def _draw_grid(axes: Any, cells: Shares, lengths: list[int], depths: list[float], window: int | None) -> Any:
    table = [[100 * cells.get((length, depth), float("nan")) for length in lengths] for depth in depths]
    image = axes.imshow(table, cmap=_grid_colours(), vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(lengths)), [tokens(n) for n in lengths], rotation=45 if len(lengths) > 8 else 0)
    axes.set_yticks(range(len(depths)), [f"{100 * depth:.3g}" for depth in depths])
    axes.set_xticks([i - 0.5 for i in range(1, len(lengths))], minor=True)
    axes.set_yticks([i - 0.5 for i in range(1, len(depths))], minor=True)
    axes.grid(True, which="minor", color="white", lw=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    if len(lengths) <= 12:
        for y, values in enumerate(table):
            for x, value in enumerate(values):
                axes.text(x, y, "–" if value != value else f"{value:.0f}", ha="center", va="center", fontsize=8)
    inside = sum(length <= window for length in lengths) if window is not None else 0
    if 0 < inside < len(lengths):
        axes.axvline(inside - 0.5, color="#111827", lw=1.5, ls=(0, (2, 2)))
    return image


@lru_cache(maxsize=1)
def _grid_colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("passkey", GRID_COLOURS).with_extremes(bad="#e5e7eb")


def _colour_bar(figure: Any, image: Any, panels: list[Any]) -> None:
    bar = figure.colorbar(image, ax=panels, shrink=0.9, pad=0.02, aspect=25)
    bar.set_label("Found (%)")
    bar.outline.set_visible(False)


def _titles(axes: Any, title: str, subtitle: str, *, width: int) -> None:
    axes.set_title("\n".join(filter(None, [title, _wrapped(subtitle, width)])), fontsize=10, loc="left")


def figure_title(figure: Any, title: str, subtitle: str) -> None:
    """A title over all axes, wrapped to the figure's width."""
    width = int(figure.get_figwidth() * 13)
    text = "\n".join(filter(None, [_wrapped(title, width), _wrapped(subtitle, width)]))
    if text:
        figure.suptitle(text, x=0.01, ha="left", fontsize=10)


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width) if text else ""
