"""The needle heat-map: stock, stock on its last 8k tokens, and XL3M, by depth and length of the text.

python -m recipes.benchmarks.documents DOCS                    # fetches the texts
python -m recipes.benchmarks.heatmap measure --documents DOCS  # writes results/xl3m_needle.json
python -m recipes.benchmarks.heatmap draw                      # draws docs/figures/xl3m.png from it

`--lengths`, `--depths`, `--trials` and `--stock-most` make it smaller; `--seconds` begins no cell later than that.
"""

from __future__ import annotations

import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hf_longctx.evaluation.report import plots
from hf_longctx.evaluation.report.files import collect
from hf_longctx.evaluation.report.measured import measured, settings_of
from hf_longctx.evaluation.rows import row

from .reading import RESULTS, TRAINED, K, arguments, finish, lengths

NAME = "xl3m_needle"
FIGURE = RESULTS.parents[2] / "docs/figures/xl3m.png"
LENGTHS = [2 * K, 4 * K, 16 * K, 64 * K, 256 * K, 1024 * K]
TRUNCATED = "stock, last 8k only"
AT_ONCE = 256 * K  # tokens in a batch of prompts


def measure(bench: Any, task: Any, new_tokens: int, args: Namespace) -> Iterator[dict[str, Any]]:
    """One row a method, length and depth. The needles of a trial lie in one text, each amid its share of the depth."""
    end = time.monotonic() + args.seconds
    for length in args.lengths:
        asked = [
            (depth, trial, *bench.prompt(task, length, depth, args.depths, seed=trial))
            for depth in range(args.depths)
            for trial in range(args.trials)
        ]
        for name in ("stock", TRUNCATED, "XL3M"):
            late = time.monotonic() > end
            skipped = "stock's time grows with the square of the length" if length > args.stock_most else None
            if late or (name == "stock" and skipped):
                right = None
            else:
                prompts = (
                    _short(bench, asked, new_tokens)
                    if name == "XL3M"
                    else [[*parts.head, *parts.text.tolist(), *parts.question] for _, _, parts, _ in asked]
                )
                keep = TRAINED - new_tokens if name == TRUNCATED else 0  # of a list, [-0:] is all of it
                right = _right(bench, [ids[-keep:] for ids in prompts], [key for *_, key in asked])
            for depth in range(args.depths):
                found = None if right is None else [ok for (d, *_), ok in zip(asked, right, strict=True) if d == depth]
                detail = {"task": "needle", "method": name, "length": length, "depth": (depth + 0.5) / args.depths}
                counts = {} if found is None else {"trials": len(found), "correct": sum(found)}
                yield row(
                    f"needle found, {length:,} tokens, depth {100 * detail['depth']:.3g} %, {name}",  # type: ignore[operator]
                    None if found is None else sum(found) / len(found),
                    "share of trials",
                    why=None if found is not None else "out of time" if late else f"not run: {skipped}",
                    detail=detail | counts,
                )


def draw(path: Path) -> Any:
    """The figure of a result file."""
    (file,), _ = collect(path)
    (task,) = measured([file])
    settings = settings_of(file)
    subtitle = f"{file.data['model']} on {file.data['hardware']}; {settings['trials']} needles per cell; texts: "
    return plots.passkey_figure(
        {name: task.grid(name) for name in task.configurations},
        window=settings["window"],
        title=f"A needle in real text, % found (dashed: trained window, {plots.tokens(settings['window'])})",
        subtitle=subtitle + settings["text"],
        hidden="needle",
    )


def _short(bench: Any, asked: list[Any], new_tokens: int) -> list[list[int]]:
    """What XL3M reads of each prompt. Of a trial's text, segments without the needle are scored once."""
    from hf_longctx.generation.xl3m import XL3M
    from hf_longctx.generation.xl3m.frame import Frame

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for _, trial, parts, _ in asked:
            context, _ = Frame(bench.model, XL3M(), new_tokens).find(parts, None, scores_file=Path(folder) / str(trial))
            rows.append([*parts.head, *context, *parts.question])
    return rows


def _right(bench: Any, prompts: list[list[int]], keys: list[str]) -> list[bool]:
    size = max(1, AT_ONCE // max(map(len, prompts)))
    answers = [a for i in range(0, len(prompts), size) for a in bench.answers(prompts[i : i + size])]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [key in answer for key, answer in zip(keys, answers, strict=True)]


def main() -> None:
    """Measure, or draw what was measured."""
    parser = arguments(__doc__)
    parser.add_argument("part", choices=["measure", "draw"])
    parser.add_argument("--lengths", type=lengths, default=LENGTHS)
    parser.add_argument("--depths", type=int, default=10)
    parser.add_argument("--trials", type=int, default=2, help="needles per cell")
    parser.add_argument("--stock-most", type=int, default=64 * K, help="the longest text the stock model reads whole")
    parser.add_argument("--seconds", type=float, default=150.0)
    args = parser.parse_args()
    if args.part == "draw":
        plots.save(draw((args.out or RESULTS) / f"{NAME}.json"), FIGURE if args.out is None else args.out / "xl3m.png")
        return
    from .xl3m_bench import NEW_TOKENS, TASKS, Bench

    bench = Bench(args)
    settings = {"window": TRAINED, "trials": args.trials, "text": f"{bench.hay.distinct:,} distinct tokens, shuffled"}
    command = "python -m recipes.benchmarks.heatmap measure --documents DOCS"
    rows = measure(bench, TASKS[1], NEW_TOKENS, args)
    finish(bench.model, rows, args, NAME, settings=settings, command=command)


if __name__ == "__main__":
    main()
