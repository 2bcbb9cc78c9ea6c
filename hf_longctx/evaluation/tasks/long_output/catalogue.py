"""The tasks by name, and problems of them by seed: those for training and those for testing never meet."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Iterator, Sequence

from ....near import did_you_mean
from ...folder import declared
from . import kinds
from .base import LongTask, Problem

LEAST, MOST = 60, 32_768  # tokens of an answer
SPLITS = ("train", "test")
_TEST_SHARE = 0.2  # of all problems there could be


def long_tasks() -> dict[str, LongTask]:
    """The tasks by name: one file each in `kinds/`."""
    return declared(kinds, "LONG_TASKS")


def task_of(name: str) -> LongTask:
    """A task by its name; ValueError if there is none."""
    known = long_tasks()
    if name not in known:
        raise ValueError(
            f"task {name!r}: no task of long answers has this name. {did_you_mean(name, known)}"
            f"There are: {', '.join(known)}."
        )
    return known[name]


def make(task: str, tokens: int, *, seed: int = 0, split: str = "train") -> Problem:
    """A problem whose right answer has about `tokens` tokens (of SmolLM2's tokenizer, usually within 20 %).

    The shortest answer of countdown has about 95. Task, tokens, seed and split decide all of it. A hash of its prompt
    decides to which split a problem belongs, so no seed gives the same one in both.

    Args:
        task: A name of `long_tasks()`.
        tokens: 60 to 32,768.
        seed: Any whole number.
        split: "train" or "test".

    Raises:
        ValueError: There is no such task or split, or the length is out of range.
    """
    maker = task_of(task)
    if not LEAST <= tokens <= MOST:
        raise ValueError(f"tokens={tokens}: expected the length of an answer, {LEAST} to {MOST:,} tokens.")
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}.")
    lines = max(3, round((tokens - maker.overhead) / maker.tokens_per_line))
    rng = random.Random(f"{task}/{tokens}/{seed}/{split}")
    while True:
        problem = maker.build(rng, lines)
        if split_of(problem) == split:
            return problem


def split_of(problem: Problem) -> str:
    """The split that a problem belongs to, by a hash of its prompt."""
    drawn = int.from_bytes(hashlib.sha256(problem.prompt.encode()).digest()[:4], "big") / 2**32
    return "test" if drawn < _TEST_SHARE else "train"


def problems(
    tasks: Sequence[str], tokens: int | tuple[int, int], n: int, *, seed: int = 0, split: str = "train"
) -> Iterator[Problem]:
    """`n` problems, the tasks in turn.

    Args:
        tasks: Names of `long_tasks()`.
        tokens: Of the answers; two numbers are a range, from which each length is drawn log-uniformly.
        n: How many.
        seed: Of all of them together.
        split: "train" or "test".

    Raises:
        ValueError: As `make`; there is no task, or `n` or the range is wrong.
    """
    least, most = (tokens, tokens) if isinstance(tokens, int) else tokens
    if not tasks or n < 1 or least > most:
        raise ValueError(
            f"tasks={list(tasks)}, tokens={tokens}, n={n}: expected at least one task and one problem, and a range "
            "from its smaller to its larger number of tokens."
        )
    for name in tasks:
        task_of(name)
    rng = random.Random(f"problems/{seed}/{split}")
    for i, task in zip(range(n), itertools.cycle(tasks), strict=False):
        length = round(math.exp(rng.uniform(math.log(max(least, 1)), math.log(max(most, 1)))))
        yield make(task, min(max(length, least), most), seed=seed * 1_000_003 + i, split=split)
