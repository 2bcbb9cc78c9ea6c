"""Generated tasks: a prompt that can be made of any number of units, and the number that fits a length."""

from __future__ import annotations

import dataclasses
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ..text.tokens import bos_prefix
from ..upstream.installing import Package, check_packages
from .haystack import NOISE
from .sample import Sample, check_depth, prompt_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROUNDS = 16  # of the search; three are the rule
_SEVERAL = 64  # units over which the tokens of one are averaged at first


@dataclass(frozen=True, kw_only=True)
class Generated(ABC):
    """A task whose samples are made for a length.

    `units` are what a document is made of (sentences, records, words); a subclass says how in `build`.
    """

    name: str
    metric: ClassVar[str] = "string_match_all"
    max_new_tokens: ClassVar[int] = 128
    least: ClassVar[int] = 1  # units of the shortest document that makes sense
    filler: ClassVar[str] = "words"  # what takes the place of less than a unit: noise words, or dots where words count

    @abstractmethod
    def build(self, rng: random.Random, units: int, fill: str, depth: float | None) -> Sample:
        """A sample whose document has `units` units, made by `sample`.

        Args:
            rng: A fresh one of the sample's seed at every call.
            units: At least `least`.
            fill: Filler that stands at the head of the document.
            depth: Where the answer is to be, 0 first to 1 last; None: at a random place.
        """

    def sample(self, fill: str, joint: str, text: str, prompt: tuple[str, str, str], **fields: Any) -> Sample:
        """A sample with the filler at the head of its document `text`.

        `prompt` is the text before the document, the question after it, and the answer's beginning.
        """
        before, question, prefix = prompt
        given = {"instruction": before, "question": question, "answer_prefix": prefix, **fields}
        given |= {"id": "", "task": self.name, "max_new_tokens": self.max_new_tokens, "metric": self.metric}
        return Sample(context=f"{fill}{joint}{text}" if fill else text, **given)

    @property
    def packages(self) -> tuple[Package, ...]:
        """The optional packages that samples are made with."""
        return ()

    def at(self, length: int) -> Generated:
        """The task as it is at a length, for those whose counts depend on it."""
        return self

    def samples(
        self, tokenizer: PreTrainedTokenizerBase, length: int, n: int, *, seed: int = 0, depth: float | None = None
    ) -> list[Sample]:
        """`n` samples whose prompt and answer take `length` tokens together.

        A sample depends on the task, the tokenizer, the length, its index, the seed and the depth, and on nothing else.
        Every prompt has `length - max_new_tokens` tokens, chat template included: the units that fit, as in RULER's
        official code, and in place of less than one unit a filler, which that code lacks, so that a batch needs no
        padding. Where a tokenizer has no filler of that many tokens, a prompt is a few tokens shorter.

        Raises:
            ImportError: One of `packages` is missing.
            ValueError: `length` holds no sample of this task, or `n` or `depth` is out of range.
        """
        check_packages(self.packages)
        if n < 1:
            raise ValueError(f"n={n}: expected at least one sample.")
        if depth is not None:
            check_depth(depth)
        task, room = self.at(length), length - self.max_new_tokens

        def make(index: int, units: int, fill: str = "") -> Sample:
            rng = random.Random(f"{self.name}/{seed}/{length}/{depth}/{index}")
            made = task.build(rng, units, fill, depth)
            return dataclasses.replace(made, id=f"{self.name}-{length}-{seed}-{index}", length=length)

        def count(samples: Sequence[Sample]) -> list[int]:
            texts = ["".join(prompt_text(tokenizer, sample)) for sample in samples]
            bos = 0 if tokenizer.chat_template else len(bos_prefix(tokenizer))
            ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
            return [len(row) + bos for row in ids]

        smallest, several = count([make(0, task.least), make(0, task.least + _SEVERAL)])
        unit = max((several - smallest) / _SEVERAL, 0.1)
        filler = _filler(tokenizer, self.filler)
        searches = [_Search(task.least, smallest, unit, room, filler) for _ in range(n)]
        best: list[Sample | None] = [None] * n
        for _ in range(_ROUNDS):
            waiting = [i for i in range(n) if not searches[i].done]
            if not waiting:
                break
            made = [make(i, searches[i].units, searches[i].fill) for i in waiting]
            for i, sample, tokens in zip(waiting, made, count(made), strict=True):
                if searches[i].saw(tokens):
                    best[i] = sample
        if None in best:
            raise ValueError(
                f"length={length}: {self.name} takes more tokens with this tokenizer ({smallest + self.max_new_tokens} "
                f"for its smallest sample, {self.max_new_tokens} of them for the answer). Use a larger length, or "
                "another task."
            )
        return [sample for sample in best if sample is not None]


class FromFile(NamedTuple):
    """A task that is made of a file of the user's: what the file holds, and how a name and a path give the task."""

    holds: str
    of: Callable[[str, str | Path], Generated]


class _Search:
    """Looks for the units, and then the filler, with which a prompt has exactly `room` tokens."""

    def __init__(self, least: int, smallest: int, unit: float, room: int, filler: _Filler) -> None:
        self.least, self.room, self.filler, self.unit = least, room, filler, unit
        self.units = max(least, least + int((room - smallest) / unit))
        self.fill, self.wanted = "", 0
        self.fits, self.over = least - 1, 10**12  # the most units that were seen to fit, the fewest that were not
        self.filling, self.done = False, False
        self._best = room + 1
        self._tried: set[str] = set()
        self._last: tuple[int, int] | None = None

    def saw(self, tokens: int) -> bool:
        """Take in the tokens of the last try and choose the next one; whether it was the best so far."""
        left = self.room - tokens
        better = 0 <= left < self._best
        self._best = left if better else self._best
        if left == 0:
            self.done = True
        elif self.filling:
            self._fill(left)
        else:
            self._next_units(tokens, left)
        return better

    def _fill(self, left: int) -> None:
        self.wanted += left
        if self.filler(self.wanted) in self._tried:
            # this tokenizer has no filler of that many tokens here; more of it, beside one unit less, may fit
            self.done = self.units <= self.least
            self.units, self.wanted = self.units - 1, self.wanted + math.ceil(self.unit)
            self._tried.clear()
        self.fill = self.filler(self.wanted)
        self._tried.add(self.fill)

    def _next_units(self, tokens: int, left: int) -> None:
        if left > 0:
            self.fits = max(self.fits, self.units)
        else:
            self.over = min(self.over, self.units)
        if self._last is not None and self._last[0] != self.units:
            # texts are denser here than there
            self.unit = max((tokens - self._last[1]) / (self.units - self._last[0]), 0.1)
        self._last = self.units, tokens
        if left > 0 and (left <= 1.5 * self.unit + 2 or self.over - self.units == 1):
            self.filling = True
            self._fill(left)
            return
        step = int(left / self.unit) if left > 0 else -math.ceil(-left / self.unit)
        self.units = min(max(self.units + (step or 1), self.fits + 1, self.least), self.over - 1)
        self.done = self.units < self.least or self.units == self._last[0]


@lru_cache(maxsize=8)
def _filler(tokenizer: PreTrainedTokenizerBase, kind: str) -> _Filler:
    return _Filler(tokenizer, kind)


class _Filler:
    """Text of a given number of tokens, or of the next smaller number of which there is one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
        words = NOISE.split(" ") * 8 if kind == "words" else ["...."] * 144
        # the tokens of each are counted, not assumed
        heads = [" ".join(words[:n]) for n in range(1, len(words) + 1)]
        texts = [f"{head}{tail}" for head in ["", *heads] for tail in (" .", " . .", *("." * n for n in range(9)))]
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        self._texts: dict[int, str] = {}
        for text, row in zip(texts, ids, strict=True):
            self._texts.setdefault(len(row), text)

    def __call__(self, tokens: int) -> str:
        return self._texts[max(size for size in self._texts if size <= max(tokens, 0))]
