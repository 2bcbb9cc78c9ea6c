"""What the parts of the XL3M benchmark share: the model, texts with facts hidden in them, and its clocks."""

from __future__ import annotations

import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_longctx.evaluation.passkey import INFO, QUESTION, TASK
from hf_longctx.generation.xl3m import XL3M
from hf_longctx.generation.xl3m.frame import Frame
from hf_longctx.generation.xl3m.prompt import Parts
from hf_longctx.text import bos_prefix, encode, ids_after, left_pad

from .haystacks import Haystacks, put
from .reading import K, subject

M = 1_000_000
LENGTHS = [16 * K, 64 * K, 256 * K, 1024 * K]
LONGEST = 20 * M
OWN = 2 * K  # the length at which the model's own accuracy is measured
NEW_TOKENS = 12
CITIES = ("Rotterdam", "Lisbon", "Nairobi", "Osaka", "Quito", "Tallinn", "Perth", "Oslo", "Lima", "Kyoto")


@dataclass(frozen=True)
class Fact:
    """A task with one fact: the text's introduction, the fact, and the question, with which the answer begins."""

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
    """A model and texts, with the operations that the parts share."""

    def __init__(self, args: Namespace) -> None:
        self.args = args
        self.model, self.tokenizer, _ = subject(Namespace(model=args.model, documents=None))
        self.hay = Haystacks(self.tokenizer, args.documents)
        self.compiling = 0.0
        self.timed: dict[int, tuple[float, float, float]] = {}  # of the longest length, which is searched once only
        print(f"{self.hay.distinct:,} distinct tokens", flush=True)

    def compile(self) -> None:
        """Compile the layers now, or turn compiling off where this machine cannot."""
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
        return encode(self.tokenizer, text)

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
        """What stock `generate` writes after each row, greedily, all at once."""
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        ids, mask = (batch.to(self.model.device) for batch in left_pad(rows, pad))
        out = self.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            pad_token_id=pad,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
        )
        return list(self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True))

    def stock(self, task: Fact, trials: int) -> float:
        """The model's own accuracy at `OWN` tokens."""
        asked = [self.prompt(task, OWN, i, trials, seed=100 + i) for i in range(trials)]
        return self.right([[*p.head, *p.text.tolist(), *p.question] for p, _ in asked], [key for _, key in asked])

    def found(self, task: Fact, length: int, trials: int, texts: int, more: Callable[[int], bool]) -> dict[str, Any]:
        """Accuracy over `trials`, which share `texts` haystacks; segments without the fact are scored once for each."""
        rows, keys, held, seconds = [], [], [], []
        with tempfile.TemporaryDirectory() as folder:
            for i in range(trials):
                seed = i * texts // trials
                if not more(i):
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
            "correct": sum(right),
            "trials": len(keys),
            "fact kept": sum(kept),
            "segments kept": held,
            "segments": len(selection.scores.get("gain", ())),
            "haystacks": min(texts, len(keys)),
            "distinct tokens": min(length, self.hay.distinct),
            "seconds to search a text": seconds,
            "wrong answers": [a for a, ok in zip(answers, right, strict=True) if not ok][:5],
        }

    def right(self, rows: list[list[int]], keys: list[str]) -> float:
        answers = [a for start in range(0, len(rows), 20) for a in self.answers(rows[start : start + 20])]
        return sum(key in answer for key, answer in zip(keys, answers, strict=True)) / len(keys)


class Peak:
    """Peak GPU memory above the memory in use now; 0 without a GPU."""

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


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def words(length: int) -> str:
    return f"{length // M}M" if length % M == 0 else "1M (1,048,576)" if length == 1024 * K else f"{length // K}k"
