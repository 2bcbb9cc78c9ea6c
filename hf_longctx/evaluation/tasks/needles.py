"""RULER's needle-in-a-haystack family: special magic numbers hidden in noise, a text or other needles.

RULER (Hsieh et al. 2024, https://arxiv.org/abs/2404.06654, section 3), with its wording, counts and answer lengths.
What differs from the official code: a text is any text, begins at another sentence in every sample, and is cut into
sentences by a rule instead of nltk.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ...upstream.installing import Package
from ..generated import Generated
from ..haystack import NOISE, Haystack, insert
from ..sample import Sample
from ..words import MAKERS, PACKAGES, distinct

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
MANY = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the {kind} afterwards.\n",
    "\nWhat are all the special magic {kind} for {query} mentioned in the provided text?",
    " The special magic {kind} for {query} mentioned in the provided text are",
)
ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "{kind} afterwards.\n",
    "\nWhat is the special magic {kind} for {query} mentioned in the provided text?",
    " The special magic {kind} for {query} mentioned in the provided text is",
)
_PLACES = 40  # depths at which RULER hides needles in a text


@dataclass(frozen=True, kw_only=True)
class Needles(Generated):
    """`keys` needles with `values` values each, of which `queries` are asked for.

    Args:
        haystack: "noise", "needles", or a text's `Haystack`.
        key_kind: "words" or "uuids".
        value_kind: "numbers" or "uuids".
        keys: Number of needles.
        values: Number of values of each needle.
        queries: Number of needles that are asked for.
    """

    haystack: str | Haystack = "noise"
    key_kind: str = "words"
    value_kind: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1

    @property
    def packages(self) -> tuple[Package, ...]:
        """Those of keys and values."""
        return (*PACKAGES[self.key_kind], *PACKAGES[self.value_kind])

    @property
    def _n(self) -> int:
        return max(self.keys, self.queries)

    def build(self, rng: random.Random, units: int, fill: str, depth: float | None) -> Sample:
        """Needles between sentences of the haystack."""
        keys = distinct(rng, self.key_kind, self._n)
        values = {key: [MAKERS[self.value_kind](rng) for _ in range(self.values)] for key in keys}
        asked = rng.sample(keys, self.queries)
        needles = [(key, NEEDLE.format(kind=self.value_kind, key=key, value=v)) for key in keys for v in values[key]]
        rng.shuffle(needles)
        if depth is not None:
            # the needles that are asked for stand first among those of one place
            needles.sort(key=lambda needle: needle[0] not in asked)
        texts = [text for _, text in needles]
        sentences = self._sentences(rng, units)
        places = self._places(rng, len(sentences), len(texts), depth)
        joint = " " if isinstance(self.haystack, Haystack) else "\n"
        one = self.queries * self.values == 1
        words = {"kind": self.value_kind[:-1] if one else self.value_kind, "query": _listed(asked)}
        before, question, prefix = (part.format(**words) for part in (ONE if one else MANY))
        prompt = before, question, prefix
        first = min(place for place, (key, _) in zip(places, needles, strict=True) if key in asked)
        depth = first / max(len(sentences), 1) if depth is None else depth
        meta = {"keys": asked, "haystack": getattr(self.haystack, "name", self.haystack)}
        answers = tuple(value for key in asked for value in values[key])
        text = joint.join(insert(sentences, texts, places))
        return self.sample(fill, joint, text, prompt, answers=answers, depth=depth, meta=meta)

    def _sentences(self, rng: random.Random, units: int) -> list[str]:
        if isinstance(self.haystack, Haystack):
            return self.haystack.take(rng, units)
        if self.haystack == "noise":
            return [NOISE] * units
        make = MAKERS[self.key_kind], MAKERS[self.value_kind]
        return [NEEDLE.format(kind=self.value_kind, key=make[0](rng), value=make[1](rng)) for _ in range(units)]

    def _places(self, rng: random.Random, sentences: int, needles: int, depth: float | None) -> Sequence[int]:
        if depth is not None:
            return [round(depth * sentences)] * needles
        if isinstance(self.haystack, Haystack):
            return sorted(sentences * place // (_PLACES - 1) for place in rng.sample(range(_PLACES), needles))
        return sorted(rng.choices(range(sentences + 1), k=needles))


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])}, and {words[-1]}"


TASKS = {
    "niah_single_1": lambda name, text: Needles(name=name),
    "niah_single_2": lambda name, text: Needles(name=name, haystack=text),
    "niah_single_3": lambda name, text: Needles(name=name, haystack=text, value_kind="uuids"),
    "niah_multikey_1": lambda name, text: Needles(name=name, haystack=text, keys=4),
    "niah_multikey_2": lambda name, text: Needles(name=name, haystack="needles"),
    "niah_multikey_3": lambda name, text: Needles(name=name, haystack="needles", key_kind="uuids", value_kind="uuids"),
    "niah_multivalue": lambda name, text: Needles(name=name, haystack=text, values=4),
    "niah_multiquery": lambda name, text: Needles(name=name, haystack=text, queries=4),
}
