"""Draws docs/figures/fast_path.png from results/fast_path_*.json: time per token, prefill time and memory by context.

python -m recipes.benchmarks.fast_path_figure
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hf_longctx.evaluation.report import plots

from .plan import read
from .reading import K

FIGURE = Path(__file__).parents[2] / "docs/figures/fast_path.png"
OURS, EAGER, STATIC = plots.LINES[2], plots.LINES[0], plots.LINES[3]


def figure() -> Any:
    """Three panels; extrapolated points are dashed and hollow."""
    made = plots.require_matplotlib()(figsize=(12.5, 4.3), layout="constrained")
    decode, prefill, memory = made.subplots(1, 3)
    for axes, draw in ((decode, _decode), (prefill, _prefill), (memory, _memory)):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        draw(axes)
        axes.grid(True, color="#e5e7eb", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    made.suptitle(
        f"SmolLM2-135M, batch 1, bf16, {read('fast_path_decode')['hardware']}: LM-Infinite beside stock transformers"
    )
    return made


def _decode(axes: Any) -> None:
    lines: dict[str, dict[int, float]] = {"LM-Infinite, window 8k": {}, "stock eager": {}, "stock static + compile": {}}
    for row in read("fast_path_decode")["rows"]:
        found = re.match(r"decoding after ([\d,]+) tokens", row["what"])
        if found:
            for name, value in {"LM-Infinite, window 8k": row["value"], **row["beside"]}.items():
                if value is not None:
                    lines[name][int(found[1].replace(",", ""))] = value
    for (name, line), style in zip(lines.items(), (OURS, EAGER, STATIC), strict=True):
        axes.plot(list(line), list(line.values()), label=name, **style)
    _axes(axes, "Decoding", "ms per token", {n for line in lines.values() for n in line})


def _prefill(axes: Any) -> None:
    detail = read("fast_path_prefill")["rows"][0]["detail"]
    own, stock = ({int(n): s for n, s in detail[key].items()} for key in ("hf_longctx, s", "stock, s"))
    far = max(own)
    axes.plot(list(own), list(own.values()), label="LM-Infinite, window 4k", **OURS)
    axes.plot(list(stock), list(stock.values()), label="stock", **EAGER)
    last, at_far = max(stock), detail["stock at 1,000,000, extrapolated, s"]
    hollow = EAGER | {"ls": ":", "mfc": "white"}
    axes.plot([last, far], [stock[last], at_far], label="stock, extrapolated by its square law", **hollow)
    _axes(axes, "Prefill", "s", {*own, *stock})


def _memory(axes: Any) -> None:
    row = next(row for row in read("fast_path_memory")["rows"] if row["beside"])
    line = {int(key.split(" ")[0].replace(",", "")): value for key, value in row["beside"].items()}
    axes.plot(list(line), list(line.values()), label="LM-Infinite, window 4k, stream", **OURS)
    cached = {n: n * 23040 / 2**30 for n in line if n <= 10**6}
    axes.plot(list(cached), list(cached.values()), label="keys and values of the stock model alone", **EAGER)
    _axes(axes, "Peak memory above the weights", "GiB", set(line))


def _axes(axes: Any, title: str, unit: str, at: set[int]) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator, StrMethodFormatter

    axes.set_title(title, fontsize=11)
    axes.set_xlabel("Context (tokens)")
    axes.set_ylabel(unit)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sorted(at), [_tokens(n) for n in sorted(at)])
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _tokens(n: int) -> str:
    return f"{n // 10**6}M" if n % 10**6 == 0 else f"{n // K}k"


if __name__ == "__main__":
    plots.save(figure(), FIGURE)
