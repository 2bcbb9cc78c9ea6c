"""XL3M: facts found in texts of 16k to 20M tokens, and the time it takes.

python -m recipes.benchmarks.documents DOCS  # fetches the texts
python -m recipes.benchmarks.xl3m find time scores settings compare own kept --documents DOCS  # or some of these

`--lengths`, `--trials` and `--longest-trials` make it smaller; `--seconds` stops a part in time, with what it has.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hf_longctx.evaluation.passkey import INFO, QUESTION, TASK
from hf_longctx.evaluation.results import row
from hf_longctx.generation.xl3m import XL3M
from hf_longctx.generation.xl3m.frame import Frame
from hf_longctx.generation.xl3m.prompt import Parts
from hf_longctx.text.joins import ids_after
from hf_longctx.text.tokens import bos_prefix

from .haystacks import Haystacks, put
from .reading import K, arguments, finish, lengths, subject

M = 1_000_000
LENGTHS = [16 * K, 64 * K, 256 * K, 1024 * K]
LONGEST = 20 * M
OWN = 2 * K  # the length at which the model's own accuracy is measured
NEW_TOKENS = 12
CITIES = ("Rotterdam", "Lisbon", "Nairobi", "Osaka", "Quito", "Tallinn", "Perth", "Oslo", "Lima", "Kyoto")


@dataclass(frozen=True)
class Fact:
    """A task with one fact: what stands before the text, the fact, and the question, with which the answer begins."""

    name: str
    before: str
    fact: str
    question: str
    digits: int


TASKS = (
    Fact("passkey", TASK + "\n", f"\n{INFO}\n", f"\n{QUESTION}", 5),
    # RULER's single needle in a text (Hsieh et al. 2024)
    Fact(
        "needle",
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about "
        "the number afterwards.\n",
        " One of the special magic numbers for {city} is: {key}.",
        "\nWhat is the special magic number for {city} mentioned in the provided text? The special magic number for "
        "{city} mentioned in the provided text is",
        7,
    ),
)


class Bench:
    """A model and texts, and what the parts do with them."""

    def __init__(self, args: Namespace) -> None:
        self.args = args
        self.model, self.tokenizer, _ = subject(Namespace(model=args.model, documents=None))
        self.hay = Haystacks(self.tokenizer, args.documents)
        self.compiling = 0.0
        self.timed: dict[int, tuple[float, float, float]] = {}  # of the longest length, which is searched once only
        print(f"{self.hay.distinct:,} distinct tokens", flush=True)

    def compile(self) -> None:
        """Compile the layers now, or find out that this machine cannot."""
        start = time.perf_counter()
        try:
            parts, _ = self.prompt(TASKS[0], 16 * K, 0, 1, seed=0)
            Frame(self.model, XL3M(), NEW_TOKENS).find(parts, None, compile=True)
        except Exception as error:
            print(f"not compiled: {type(error).__name__}: {str(error)[:500]}", flush=True)
            self.args.compile = False
        self.compiling = time.perf_counter() - start
        print(f"compiled in {self.compiling:.0f} s", flush=True)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt(self, task: Fact, length: int, trial: int, trials: int, seed: int) -> tuple[Parts, str]:
        """A prompt of `length` tokens and its answer. Trials of one seed share haystack and question."""
        city = CITIES[seed % len(CITIES)]
        key = str(
            torch.randint(10 ** (task.digits - 1), 10**task.digits, (), generator=_seeded(length, trial, seed)).item()
        )
        head = bos_prefix(self.tokenizer) + self.ids(task.before)
        question = ids_after(self.tokenizer, "a", task.question.format(city=city))
        hay = self.hay.make(length - len(head) - len(question), seed)
        fact = task.fact.format(city=city, key=key)
        text = put(hay, [((trial + 0.5) / trials, ids_after(self.tokenizer, "a", fact))])
        return Parts(head, text, question), key

    def answers(self, rows: list[list[int]], new_tokens: int = NEW_TOKENS) -> list[str]:
        """What stock `generate` writes behind each row, greedily, all at once."""
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=self.model.device)
        out = self.model.generate(
            ids, attention_mask=mask, max_new_tokens=new_tokens, pad_token_id=pad, do_sample=False, temperature=None,
            top_p=None, top_k=None,
        )  # fmt: skip
        return list(self.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True))

    def stock(self, task: Fact, trials: int) -> float:
        """The model's own accuracy at `OWN` tokens."""
        asked = [self.prompt(task, OWN, i, trials, seed=100 + i) for i in range(trials)]
        return self.right([[*p.head, *p.text.tolist(), *p.question] for p, _ in asked], [key for _, key in asked])

    def found(self, task: Fact, length: int, trials: int, texts: int, go_on: Callable[[int], bool]) -> dict[str, Any]:
        """Accuracy over `trials`, which share `texts` haystacks; segments without the fact are scored once for each."""
        rows, keys, held, seconds = [], [], [], []
        with tempfile.TemporaryDirectory() as folder:
            for i in range(trials):
                seed = i * texts // trials
                if not go_on(i):
                    break
                parts, key = self.prompt(task, length, i, trials, seed)
                file = Path(folder) / str(seed) if texts < trials else None
                fresh = file is None or not file.exists()
                memory = Peak()
                start = time.perf_counter()
                context, selection = Frame(self.model, XL3M(), NEW_TOKENS).find(
                    parts, None, scores_file=file, compile=self.args.compile
                )
                searched = time.perf_counter() - start
                rows.append([*parts.head, *context, *parts.question])
                if fresh:
                    seconds.append(searched)
                    if length == self.args.longest and length not in self.timed:
                        self.answers(rows[-1:])
                        self.timed[length] = time.perf_counter() - start, searched, memory.gib()
                keys.append(key)
                held.append(len(selection.kept))
        answers = self.answers(rows)
        right = [key in answer for key, answer in zip(keys, answers, strict=True)]
        kept = [key in self.tokenizer.decode(r) for key, r in zip(keys, rows, strict=True)]
        return {
            "correct": sum(right), "trials": len(keys), "fact kept": sum(kept), "segments kept": held,
            "segments": len(selection.scores.get("gain", ())), "haystacks": min(texts, len(keys)),
            "distinct tokens": min(length, self.hay.distinct), "seconds to search a text": seconds,
            "wrong answers": [a for a, ok in zip(answers, right, strict=True) if not ok][:5],
        }  # fmt: skip

    def right(self, rows: list[list[int]], keys: list[str]) -> float:
        answers = [a for start in range(0, len(rows), 20) for a in self.answers(rows[start : start + 20])]
        return sum(key in answer for key, answer in zip(keys, answers, strict=True)) / len(keys)


def find(bench: Bench) -> Iterator[dict[str, Any]]:
    """Every length and task. Few texts are shared by the trials of a long length, which is said in the row."""
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
                ratio, "", bar=">= 0.95", why=note, beside={"accuracy": accuracy, "own at 2k": own[task.name]},
                detail={**cell, "length": length},
            )  # fmt: skip


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
        ids.to(bench.model.device), custom_generate=XL3M(), document=parts.text, question=len(parts.question),
        head=len(parts.head), max_new_tokens=NEW_TOKENS, do_sample=False, temperature=None, top_p=None, top_k=None,
        compile=compile, read_progress=lambda tokens: reached.append(time.perf_counter()),
    )  # fmt: skip
    _synchronize()
    end = time.perf_counter()
    return end - start, reached[-1] - start, memory.gib()


@torch.no_grad()
def _stock_prefill(bench: Bench, lengths: list[int]) -> dict[int, float]:
    found = {}
    for n in lengths:
        ids = bench.hay.make(n, seed=0)[None].to(bench.model.device)
        samples = []
        for _ in range(2):
            _synchronize()
            start = time.perf_counter()
            bench.model(ids, logits_to_keep=1)
            _synchronize()
            samples.append(time.perf_counter() - start)
        found[n] = min(samples)
    return found


def _square_law(seconds: dict[int, float]) -> Callable[[int], float]:
    """The least-squares fit of a linear and a quadratic term."""
    n = torch.tensor([float(n) for n in seconds]) / K
    fit = torch.linalg.lstsq(torch.stack([n, n**2], 1), torch.tensor(list(seconds.values()))[:, None]).solution[:, 0]
    return lambda length: float(fit[0] * length / K + fit[1] * (length / K) ** 2)


class Peak:
    """Most memory of the GPU above what is held now; 0 without a GPU."""

    def __init__(self) -> None:
        self._before = 0
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()

    def gib(self) -> float:
        if not torch.cuda.is_available():
            return 0.0
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - self._before) / 2**30


def _seeded(*numbers: int) -> torch.Generator:
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**62
    return torch.Generator().manual_seed(seed)


def clock(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def words(length: int) -> str:
    return f"{length // M}M" if length % M == 0 else "1M (1,048,576)" if length == 1024 * K else f"{length // K}k"


def main() -> None:
    """Run the parts one after the other; each writes its own result file."""
    from .xl3m_compare import TASKS as COMPARED
    from .xl3m_compare import compare, kept, own
    from .xl3m_settings import scores, settings

    parts = {
        "scores": scores, "find": find, "time": times, "settings": settings, "compare": compare, "own": own,
        "kept": kept,
    }  # fmt: skip
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
