"""Pictures of the miniature: `python -m recipes.long_clip.figures`, from results/long_clip.json into docs/figures.

`long_clip_scenes.png`, what the model sees and reads, needs no result.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

import torch

from hf_longctx.evaluation.report.plots import LINES, require_matplotlib, save
from recipes.outs import new_folder

from . import scene_captions as captions
from .miniature import BASE
from .scenes import draw, render

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "recipes/benchmarks/results/long_clip.json"


def scenes_figure() -> Any:
    """Two pairs of near-duplicates with their long captions, the words beyond 77 tokens in grey."""
    generator = torch.Generator().manual_seed(3)
    scenes = draw(4, generator, alike=2, shared=0.8)
    pictures, ids = render(scenes), captions.long(scenes, generator, 248).ids
    figure = require_matplotlib()(figsize=(11.0, 5.4), layout="constrained")
    panels = figure.subplots(2, 4, height_ratios=[1, 1.05])
    for picture, told, (top, below) in zip(pictures, ids, panels.T, strict=True):
        top.imshow(picture.permute(1, 2, 0))
        top.axis("off")
        below.axis("off")
        read = captions.text_of(told[: BASE - 1])
        whole = textwrap.wrap(captions.text_of(told), 46)
        letters = 0
        for number, line in enumerate(whole):
            inside = letters + len(line) <= len(read)
            letters += len(line) + 1
            below.text(0, 1 - 0.06 * number, line, fontsize=7, va="top", color="#111827" if inside else "#9ca3af")
    figure.suptitle(
        f"Scenes in pairs with one summary; grey: beyond the first {BASE} tokens", x=0.01, ha="left", fontsize=10
    )
    return figure


def positions_figure(result: dict[str, Any]) -> Any:
    """R@1 by the token at which the deciding sentence starts, one line a model, and what each keeps on its way.

    On the right R@1 on short captions: on long ones all end alike, and what the first steps lose tells them apart.
    """
    rows = [row for row in result["rows"] if "by position" in row.get("detail", {})]
    if not rows:
        raise ValueError("no row with R@1 by position. Run python -m recipes.long_clip.miniature first.")
    figure = require_matplotlib()(figsize=(11.0, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row, style in zip(rows, (LINES[0], *LINES[2:]), strict=False):
        name = row["what"].partition(":")[0].partition(",")[0]
        curve = {int(position): share for position, share in row["detail"]["by position"].items()}
        left.plot(list(curve), list(curve.values()), label=name, **style)
        if "path" in row["detail"]:
            path = {int(step): found["short"] for step, found in row["detail"]["path"].items()}
            right.plot(list(path), list(path.values()), label=name, **style)
    left.axvline(BASE, color="#374151", lw=1.2, ls=(0, (2, 2)))
    left.set_xlabel("Token at which the deciding sentence starts")
    left.set_ylabel("R@1 among 1,000 scenes, in tens alike but for it")
    right.set_xlabel("Steps on long captions")
    right.set_ylabel("R@1 on short captions")
    for axes in (left, right):
        axes.set_ylim(-0.03, 1.03)
        axes.grid(True, color="#e5e7eb", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    conditions = f"{result['model']}, {result['hardware']}, {result['date'][:10]}, commit {result['commit'][:12]}"
    figure.suptitle(f"Long-CLIP in miniature: {conditions}", x=0.01, ha="left", fontsize=10)
    return figure


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--out", type=new_folder, default=ROOT / "docs/figures")
    args = parser.parse_args(arguments)
    save(scenes_figure(), args.out / "long_clip_scenes.png")
    if args.result.is_file():
        save(positions_figure(json.loads(args.result.read_text(encoding="utf-8"))), args.out / "long_clip.png")


if __name__ == "__main__":
    main()
