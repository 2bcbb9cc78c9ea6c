"""XL3M: facts found in texts of 16k to 20M tokens, and the time it takes.

python -m recipes.benchmarks.documents DOCS  # fetches the texts
python -m recipes.benchmarks.xl3m find time scores settings compare own kept --documents DOCS  # or some of these

`--lengths`, `--trials` and `--longest-trials` make it smaller; `--seconds` stops a part in time, with what it has.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch

from hf_longctx.evaluation.rows import row
from hf_longctx.generation.xl3m import XL3M
from hf_longctx.generation.xl3m.prompt import Parts

from .reading import K, arguments, check_parts, finish, lengths
from .xl3m_bench import LENGTHS, LONGEST, NEW_TOKENS, TASKS, Bench, Peak, clock, synchronize, words
from .xl3m_compare import TASKS as COMPARED
from .xl3m_compare import compare, kept, own
from .xl3m_settings import scores, settings


def find(bench: Bench) -> Iterator[dict[str, Any]]:
    """Every length and task. The trials of a long length share few texts, which the row tells."""
    args, stop = bench.args, clock(bench.args.seconds)
    own = {task.name: bench.stock(task, max(args.trials, 1) * 2) for task in TASKS}
    for task in TASKS:
        yield row(
            f"{task.name}: the model's own accuracy at 2k", own[task.name], "", detail={"trials": args.trials * 2}
        )
    for length in [*args.lengths, *([args.longest] if args.longest_trials else [])]:
        trials = args.longest_trials if length == args.longest else args.trials
        texts = 1 if length == args.longest else trials if length <= 256 * K else min(4, trials)
        for task in TASKS:
            if stop():
                continue
            cell = bench.found(task, length, trials, texts, lambda i: i == 0 or not stop())
            accuracy = cell["correct"] / cell["trials"]
            ratio = accuracy / own[task.name] if own[task.name] else None
            note = f"the model's own accuracy at 2k is {own[task.name]}" if ratio is None else None
            yield row(
                f"{task.name} at {words(length)} tokens, {cell['trials']} trials: accuracy over the model's own at 2k",
                ratio,
                "",
                bar=">= 0.95",
                why=note,
                beside={"accuracy": accuracy, "own at 2k": own[task.name]},
                detail={**cell, "length": length},
            )


def times(bench: Bench) -> Iterator[dict[str, Any]]:
    """From token ids on the host to the answer, through `generate`; stock beside it, measured and extrapolated."""
    args, task = bench.args, TASKS[1]
    stock = _stock_prefill(bench, args.stock_lengths)
    yield row("stock prefill, measured", None, "s", why="beside", beside={words(n): s for n, s in stock.items()})
    law = _square_law(stock)
    found: dict[int, tuple[float, float, float]] = {}
    for length in [*args.lengths, args.longest] if args.longest_trials else args.lengths:
        parts, key = bench.prompt(task, length, 0, 1, seed=7)
        runs = 1 if length == args.longest else 3
        if not found:  # kernels are loaded
            _through_generate(bench, parts, compile=args.compile)
        known = bench.timed.get(length)
        samples = [known] if known else [_through_generate(bench, parts, compile=args.compile) for _ in range(runs)]
        seconds, search, peak = (median(sample[i] for sample in samples) for i in range(3))
        found[length] = seconds, search, peak
        beside = {"searching": search, "stock prefill, by its square law": law(length)}
        if args.compile and length != args.longest:
            beside["not compiled"] = median(_through_generate(bench, parts, compile=False)[0] for _ in range(runs))
        bar = {1024 * K: "<= 2.5", LONGEST: "<= 60"}.get(length)
        detail = {"samples": samples, "peak GiB": peak, "length": length, "compiling": bench.compiling, "answer": key}
        yield row(f"{words(length)} tokens, from ids to answer", seconds, "s", bar=bar, beside=beside, detail=detail)
    if len(found) > 1:
        (short, first), (long, last) = list(found.items())[-2:]
        rate = (last[1] / long) / (first[1] / short)
        yield row(f"time per token, {words(long)} over {words(short)}", rate, "x", bar="<= 1.1")
        grown = last[2] / first[2] if first[2] else None
        yield row(
            f"peak memory, {words(long)} over {words(short)}",
            grown,
            "x",
            bar="<= 1.1",
            why=None if grown else "no GPU",
        )


def _through_generate(bench: Bench, parts: Parts, compile: bool) -> tuple[float, float, float]:
    """Seconds of `generate`, seconds of them until the text was read, and peak GiB above what was there before."""
    ids = torch.tensor([[*parts.head, *parts.question]])
    reached: list[float] = []
    memory = Peak()
    start = time.perf_counter()
    bench.model.generate(
        ids.to(bench.model.device),
        custom_generate=XL3M(),
        document=parts.text,
        question=len(parts.question),
        head=len(parts.head),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        compile=compile,
        read_progress=lambda tokens: reached.append(time.perf_counter()),
    )
    synchronize()
    end = time.perf_counter()
    return end - start, reached[-1] - start, memory.gib()


@torch.no_grad()
def _stock_prefill(bench: Bench, lengths: list[int]) -> dict[int, float]:
    found = {}
    for n in lengths:
        ids = bench.hay.make(n, seed=0)[None].to(bench.model.device)
        samples = []
        for _ in range(2):
            synchronize()
            start = time.perf_counter()
            bench.model(ids, logits_to_keep=1)
            synchronize()
            samples.append(time.perf_counter() - start)
        found[n] = min(samples)
    return found


def _square_law(seconds: dict[int, float]) -> Callable[[int], float]:
    """The least-squares fit of a linear and a quadratic term."""
    n = torch.tensor([float(n) for n in seconds]) / K
    fit = torch.linalg.lstsq(torch.stack([n, n**2], 1), torch.tensor(list(seconds.values()))[:, None]).solution[:, 0]
    return lambda length: float(fit[0] * length / K + fit[1] * (length / K) ** 2)


def main() -> None:
    """Run the parts one after the other; each writes its own result file."""
    parts = {
        "scores": scores,
        "find": find,
        "time": times,
        "settings": settings,
        "compare": compare,
        "own": own,
        "kept": kept,
    }
    parser = arguments(__doc__)
    parser.add_argument("parts", nargs="+", choices=list(parts))
    parser.add_argument("--lengths", type=lengths, default=LENGTHS)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--longest", type=int, default=LONGEST)
    parser.add_argument("--longest-trials", type=int, default=5, help="0: leave the longest length out")
    parser.add_argument("--setting-trials", type=int, default=10)
    parser.add_argument("--stock-lengths", type=lengths, default=[32 * K, 64 * K, 128 * K])
    parser.add_argument("--compare-lengths", type=lengths, default=[64 * K, 256 * K])
    parser.add_argument("--compare-tasks", nargs="*", choices=list(COMPARED), help="all of them by default")
    parser.add_argument("--questions", type=int, default=10, help="compare: asked about each text")
    parser.add_argument("--patience", type=float, default=25.0, help="compare: most seconds per text")
    parser.add_argument("--compile", action="store_true", help="run the decoder layers compiled while scoring")
    parser.add_argument("--seconds", type=float, default=200.0, help="no part begins a cell later than this")
    args = parser.parse_args()
    check_parts(parser, args)
    bench = Bench(args)
    if args.compile:
        bench.compile()
    headings = {
        "scores": {"heading": "worst with the fact over best without"},
        "settings": {"heading": "mean accuracy"},
        "compare": {"heading": "XL3M"},
        "own": {"heading": "stock"},
        "kept": {"heading": "answers in the key context"},
    }
    for part in args.parts:
        start = time.perf_counter()
        command = f"python -m recipes.benchmarks.xl3m {part} --documents DOCS{' --compile' if args.compile else ''}"
        told = {"distinct tokens": bench.hay.distinct, "command": command, **headings.get(part, {})}
        try:
            finish(bench.model, parts[part](bench), args, f"xl3m_{part}", **told)
        except Exception:  # the other parts are still worth their time
            traceback.print_exc()
        print(f"{part}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
