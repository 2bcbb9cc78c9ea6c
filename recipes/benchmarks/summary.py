"""Draws README's picture, docs/figures/summary.png: the stock model beyond its trained length, and two methods.

python -m recipes.benchmarks.summary      # from results/zero_shot_perplexity.json, xl3m_needle.json and xl3m_find.json
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hf_longctx.evaluation.report import plots

from .plan import read
from .reading import RESULTS, TRAINED, K

FIGURE = RESULTS.parents[2] / "docs/figures/summary.png"
STOCK, TRUNCATED = "stock", "stock, last 8k only"
STYLES: dict[str, dict[str, Any]] = {
    STOCK: plots.LINES[0] | {"color": "#dc2626"},
    TRUNCATED: plots.LINES[1] | {"color": "#d1d5db"},
    "LM-Infinite 8k": plots.LINES[2],
    "XL3M": plots.LINES[3],
}
# the line -> where its name stands: length, value, alignment
NAMES: dict[str, dict[str, tuple[int, float, str]]] = {
    "perplexity": {
        STOCK: (20 * K, 2500, "right"),
        TRUNCATED: (10 * K, 9.5, "left"),
        "LM-Infinite 8k": (10 * K, 21, "left"),
    },
    "needle": {STOCK: (18 * K, -11, "left"), TRUNCATED: (20 * K, 24, "left"), "XL3M": (20 * K, 86, "left")},
}


def curves() -> dict[str, dict[str, dict[int, float]]]:
    """Each panel's lines by length: perplexity, and needles found in percent, the mean of all depths."""
    rows = read("zero_shot_perplexity")["rows"]
    perplexity = {row["what"]: {int(n): v for n, v in row["detail"]["perplexity"].items()} for row in rows}
    counts: dict[str, dict[int, list[int]]] = {}
    for cell in (row["detail"] for row in read("xl3m_needle")["rows"]):
        if "trials" in cell:
            count = counts.setdefault(cell["method"], {}).setdefault(cell["length"], [0, 0])
            count[0] += cell["correct"]
            count[1] += cell["trials"]
    needle = {name: {n: 100 * right / trials for n, (right, trials) in line.items()} for name, line in counts.items()}
    (far,) = [row["detail"] for row in read("xl3m_find")["rows"] if row["what"].startswith("needle at 20M")]
    needle["XL3M"][far["length"]] = 100 * far["correct"] / far["trials"]
    return {
        "perplexity": {name: perplexity[name] for name in NAMES["perplexity"]},
        "needle": {name: needle[name] for name in NAMES["needle"]},
    }


def stamp() -> str:
    """What the picture was drawn from, in its metadata: a test draws no pixels."""
    return hashlib.sha256(json.dumps(curves(), sort_keys=True).encode()).hexdigest()


def figure() -> Any:
    """Two panels: text after ever more context, and a fact in ever longer text."""
    from matplotlib.ticker import NullFormatter, NullLocator, StrMethodFormatter

    source = read("xl3m_find")
    made = plots.require_matplotlib()(figsize=(10.4, 4.5), layout="constrained")
    panels = dict(zip(NAMES, made.subplots(1, 2, width_ratios=[1, 1.25]), strict=True))
    for part, lines in curves().items():
        axes = panels[part]
        for name, line in lines.items():
            axes.plot(list(line), list(line.values()), **STYLES[name])
            x, y, side = NAMES[part][name]
            colour = "#6b7280" if name == TRUNCATED else STYLES[name]["color"]
            axes.text(x, y, name, ha=side, color=colour, fontsize=10, fontweight="bold")
        axes.axvline(TRAINED, color="#374151", lw=1.2, ls=(0, (2, 2)), zorder=1.7)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        ticks = sorted({n for line in lines.values() for n in line})
        axes.set_xticks(ticks, [plots.tokens(n) for n in ticks])
        axes.set_xlabel("Length of the text (tokens)")
        axes.grid(True, color="#e5e7eb", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    fluent, found = panels.values()
    fluent.set_yscale("log")
    fluent.set_ylim(7, 2e4)
    fluent.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    fluent.yaxis.set_minor_formatter(NullFormatter())
    fluent.text(TRAINED * 0.94, 6000, "trained on\n8k tokens", ha="right", color="#374151", fontsize=9)
    fluent.set_title("Fluency: perplexity of the same last 1,024 tokens", fontsize=10.5, loc="left")
    found.set_ylim(-14, 104)
    found.set_title("Retrieval: one fact found in the text (%)", fontsize=10.5, loc="left")
    conditions = f"{source['model']}, on one {source['hardware']}."
    left, right = "perplexity: 5 documents", "retrieval: a needle at 10 depths, 20 trials per length, 5 at 20M"
    made.suptitle(f"{conditions}\nLeft, {left}. Right, {right}.", x=0.01, ha="left", fontsize=9, color="#374151")
    return made


if __name__ == "__main__":
    plots.save(figure(), FIGURE, metadata={"Source": stamp()})
