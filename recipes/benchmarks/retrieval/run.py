"""What the parts of the benchmark share: a reader, the texts, sizes, methods, and documents of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any

from hf_longctx import CodeLookup, LMInfinite
from recipes.cards import free

from ..haystacks import Haystacks
from ..reading import K
from .asking import SINGLE, Answers, Document, answers, document
from .facts import Encode
from .scale import TINY_SCALE, Scale

SHORT = 400  # tokens within which a question and its answer stay
LONG, LONGEST = 64 * K, 1_000_000
CALIBRATION = 9000  # the seed of a text that no document has
NAMES = {LONG: "64k", LONGEST: "1M"}  # lengths that have bars


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured.

    Args:
        length: Of long documents, in tokens.
        documents: Long ones with facts of all kinds, with chains alone, and those that every gate reads.
        kinds: Facts of a document.
        chains: Chains of a document with chains alone.
        inside: Lengths within 4k at which the reader must answer, and how many documents of each.
        passkeys: Depths, and documents of each.
        text: Tokens that are scored after a document.
        chunk: Tokens of a forward pass.
        written: Documents after which tokens are written, tokens of each, and facts among them.
        ruler: Samples of each of RULER's tasks.
        ruler_lengths: Of these, in tokens: for methods, and for the stock model.
        scale: Of time and memory.
    """

    length: int = LONG
    documents: tuple[int, int, int] = (17, 3, 4)
    kinds: tuple[tuple[str, int], ...] = (("number", 7), ("pass key", 5), ("values", 1), ("chain", 1))
    chains: int = 8
    inside: tuple[tuple[int, ...], int] = ((1200, 3500), 10)
    passkeys: tuple[int, int] = (10, 10)
    text: int = 1024
    chunk: int = 16 * K
    written: tuple[int, int, int] = (4, 8 * K, 12)
    ruler: int = 10
    ruler_lengths: tuple[int, int] = (64 * K, 8 * K)
    scale: Scale = field(default_factory=Scale)

    @classmethod
    def at(cls, length: int) -> Sizes:
        """Fewer documents where one takes long."""
        return cls(length=length) if length <= LONG else cls(length=length, documents=(5, 1, 3), passkeys=(10, 3))


TINY = Sizes(
    length=2048,
    documents=(1, 1, 1),
    kinds=(("number", 1), ("pass key", 1), ("values", 1), ("chain", 1)),
    chains=1,
    inside=((1024,), 1),
    passkeys=(2, 1),
    text=32,
    chunk=512,
    written=(1, 300, 2),
    ruler=1,
    ruler_lengths=(2048, 2000),
    scale=TINY_SCALE,
)


@dataclass
class Run:
    """A model as a reader, and everything that its parts measure with."""

    model: Any
    encode: Encode
    texts: Haystacks
    sizes: Sizes
    reader: str  # in words: "stock reader", "tuned reader, seed 0"
    lesson: dict[str, Any] | None = None  # what teaching took
    untaught: float | None = None  # perplexity before it
    tokenizer: Any = None
    documents: Path | None = None  # the folder of the texts
    until: float | None = None  # `monotonic()` after which long parts stop, and say so
    older: Path | None = None  # a source tree to compare with

    @property
    def tuned(self) -> bool:
        """Has it been taught? Bars are of such a reader."""
        return self.lesson is not None

    @property
    def time_is_over(self) -> bool:
        """Must a long part end now?"""
        return self.until is not None and monotonic() > self.until

    @staticmethod
    def at_length(length: int, bar: str) -> str | None:
        """A bar that any reader has at 64k, and none that is smaller."""
        return bar if length == LONG else None

    def free(self) -> None:
        """Give back the memory of caches that are gone."""
        free()

    @property
    def length(self) -> str:
        """Of long documents, in words."""
        return NAMES.get(self.sizes.length, f"{self.sizes.length:,} tokens")

    def bar(self, long: str, longest: str | None = None) -> str | None:
        """One of the bars at 64k and at 1M, if the texts are of that length and the reader can read."""
        return {LONG: long, LONGEST: longest}.get(self.sizes.length) if self.tuned else None

    @cached_property
    def lookup(self) -> CodeLookup:
        """The method as it is by default, with what it takes from the model."""
        return CodeLookup().resolve(self.model.config)

    @cached_property
    def retrieving(self) -> CodeLookup:
        """The same for the heads that retrieve, by a text of as many tokens as the window has."""
        assert self.lookup.n_local is not None
        text = self.texts.make(min(self.lookup.n_local, self.sizes.length), CALIBRATION)
        return self.lookup.calibrated(self.model, text)

    @cached_property
    def window(self) -> LMInfinite:
        """The same window and first tokens alone."""
        return LMInfinite(n_global=self.lookup.n_global, n_local=self.lookup.n_local)

    @cached_property
    def keys(self) -> CodeLookup:
        """The same look-up among all keys."""
        return replace(self.lookup, by="keys")

    @property
    def behind(self) -> int:
        """Tokens that stand at least between a fact and the end, so that no question has it in its window."""
        assert self.lookup.n_local is not None
        return self.lookup.n_local + SHORT

    def long(self, kinds: dict[str, int] | None = None, number: int = 0) -> Iterator[Document]:
        """Documents whose facts have all left the window."""
        for seed in range(self.sizes.documents[number]):
            yield document(
                self.encode, self.texts, kinds or dict(self.sizes.kinds), self.sizes.length, seed,
                before=self.behind, continued=self.sizes.text + 1,
            )  # fmt: skip

    def short(self, kinds: dict[str, int] | None = None) -> Iterator[Document]:
        """Documents that the model reads inside its window."""
        lengths, n = self.sizes.inside
        for length in lengths:
            for seed in range(n):
                yield document(self.encode, self.texts, kinds or dict(self.sizes.kinds), length, 1000 + seed)

    def ask(self, method: Any, **more: Any) -> Answers:
        """Long documents with facts of all kinds."""
        return answers(self.model, self.encode, method, self.long(), chunk=self.sizes.chunk, **more)

    @cached_property
    def inside(self) -> Answers:
        """What the reader answers inside its window, without a method."""
        return answers(self.model, self.encode, None, self.short(), chunk=self.sizes.chunk)

    @cached_property
    def window_only(self) -> Answers:
        """What the window alone answers: what it costs and finds is compared with that."""
        return self.ask(self.window)

    @cached_property
    def found(self) -> Answers:
        """What the method answers as it is by default."""
        return self.ask(self.lookup)

    def over_inside(self, got: Answers) -> float | None:
        """Right answers to numbers and pass keys, over those of the same reader inside its window."""
        own, found = self.inside.share(*SINGLE), got.share(*SINGLE)
        return found / own if own and found is not None else None
