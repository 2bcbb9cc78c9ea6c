"""RULER-type tasks from 4k to 64k, one method, in one run: the eleven tasks that need no file of the user's.

python -m recipes.benchmarks.documents DOCS        # fetches the texts
python -m recipes.benchmarks.ruler --documents DOCS [--method lm_infinite --set n_local=8192]
python -m recipes.benchmarks.ruler --lengths 1024 --samples 2 --tasks niah_single_1,vt     # small, on a CPU
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hf_longctx.evaluation.catalogue import RULER
from hf_longctx.evaluation.effective import RULER_BAR, SHARE, effective_length, own_score
from hf_longctx.evaluation.rows import row
from hf_longctx.evaluation.runner import evaluate
from hf_longctx.registry import parse

from .reading import K, arguments, finish, lengths, subject

LENGTHS = [4 * K, 8 * K, 16 * K, 32 * K, 64 * K]
SAMPLES = [25, 25, 25, 25, 10]
TEXT = "moby_dick"  # of the documents: the haystack


def suite(args: Any, model: Any, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """A row a task, with its scores at every length; the average, the time, and the effective lengths."""
    lengths, tasks = args.lengths, args.tasks
    counts = args.samples if len(args.samples) == len(lengths) else [args.samples[0]] * len(lengths)
    method = None if args.method == "stock" else parse(args.method, args.set)
    text = "python-docs" if args.documents is None else str(args.documents / f"{TEXT}.txt")
    before, making, seconds = time.perf_counter(), 0.0, {}
    scores: dict[str, dict[int, float | None]] = {task: {} for task in tasks}
    with tempfile.TemporaryDirectory() as folder:
        # a length at a time, so that what was measured is on disk before the next one
        for length, count in zip(lengths, counts, strict=True):
            start = time.perf_counter()
            found = evaluate(
                model,
                tokenizer,
                task=tasks,
                lengths=[length],
                method=method,
                out=Path(folder) / str(length),
                samples=count,
                text=text,
                alone=True,
                batch_tokens=2**23,
                batch_rows=args.batch_rows,
                prefill_tokens=args.prefill_tokens,
                console=Console(),
            )
            seconds[length] = round(time.perf_counter() - start, 1)
            making += found["settings"]["seconds_making_samples"]
            for line in found["rows"]:
                if "length" in line["detail"]:
                    scores[line["detail"]["task"]][length] = line["value"]
                    name = f"{line['detail']['task']}, {length // K}k" if length >= K else line["what"]
                    yield row(name, line["value"], "", why=line["why"], beside={"samples": count},
                              detail={**line["detail"], "method": repr(method), "window": args.window})  # fmt: skip
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    means: dict[int, float] = {}
    for length in lengths:
        values = [value for task in tasks if (value := scores[task][length]) is not None]
        complete = len(values) == len(tasks)
        if complete:
            means[length] = round(sum(values) / len(values), 2)
        beside = {"samples": counts[lengths.index(length)] * len(tasks), "seconds": seconds[length]}
        why = None if complete else "a task has no score"
        yield row(f"average of {len(tasks)} tasks, {length:,} tokens", means.get(length), "", why=why, beside=beside)
    yield from _effective(means, args.window)
    total = round(time.perf_counter() - before, 1)
    yield row(
        f"the whole suite: {len(tasks)} tasks, {lengths[0]:,} to {lengths[-1]:,} tokens", total, "s", bar="<= 540",
        detail={"seconds": seconds, "making samples": round(making, 1), "method": repr(method),
                "samples": dict(zip(lengths, counts, strict=True))},
    )  # fmt: skip


def _effective(means: dict[int, float], window: int) -> Iterator[dict[str, Any]]:
    """The longest length up to which the average reaches RULER's bar, and a share of what is reached in the window."""
    own = own_score(means, window)
    bars = {f"effective length, average of at least {RULER_BAR}, tokens": RULER_BAR}
    if own is not None and own[1] > 0:
        bars[f"effective length, at least {SHARE:.0%} of the {own[1]:.1f} at {own[0]:,}, tokens"] = SHARE * own[1]
    for what, bar in bars.items():
        found = effective_length(means, bar)
        yield row(what, found, "", why=None if found else "not reached at the shortest length", detail={"bar": bar})


def _whole(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def main() -> None:
    """Run the suite and write `results/ruler.json` row by row."""
    parser = arguments(__doc__)
    parser.add_argument("--method", default="lm_infinite", help="a method's name, or stock")
    parser.add_argument("--set", action="append", default=[], help="a setting of the method")
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=list(RULER))
    parser.add_argument("--lengths", type=lengths, default=LENGTHS)
    parser.add_argument("--samples", type=_whole, default=SAMPLES, help="one number, or one for each length")
    parser.add_argument(
        "--batch-rows", type=int, default=100, help="prompts of a batch; one that is too large is halved"
    )
    parser.add_argument("--prefill-tokens", type=int, default=2**17, help="tokens of a batch that are read at once")
    parser.add_argument("--window", type=int, default=8 * K, help="recorded as the trained length")
    args = parser.parse_args()
    args.documents = args.documents if args.documents is None else Path(args.documents)
    if args.documents is not None and not (args.documents / f"{TEXT}.txt").is_file():
        parser.error(f"{args.documents} has no {TEXT}.txt: python -m recipes.benchmarks.documents DIR fetches it")
    documents, args.documents = args.documents, None
    model, tokenizer, _ = subject(args)  # without tokenizing every text
    args.documents = documents
    name = "ruler" if args.method == "lm_infinite" else f"ruler_{args.method}"
    finish(model, suite(args, model, tokenizer), args, name, heading="score of 100")


if __name__ == "__main__":
    main()
