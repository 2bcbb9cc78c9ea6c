"""Paragraphs that come again, inside a text or in another, are dropped: far text that repeats teaches to copy."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

SHORTEST = 40  # characters of a paragraph that may count as repeated; shorter ones, such as headings, are kept
_BLANK = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Dropped:
    """What was dropped of one text.

    Args:
        paragraphs: How many.
        characters: How long they are together.
        of: Characters of the text.
    """

    paragraphs: int
    characters: int
    of: int

    @property
    def share(self) -> float:
        """Which part of the text."""
        return self.characters / self.of if self.of else 0.0


def drop_repeated(texts: Iterable[str], *, shortest: int = SHORTEST) -> tuple[list[str], list[Dropped]]:
    """Texts without the paragraphs that came before, in the same text or in an earlier one; and what was dropped.

    Paragraphs are those of `paragraphs_of`. Two are the same if they differ in white space and capitals only. The first
    one stays. A text of which nothing is left becomes "".

    Args:
        texts: In the order of their importance: the held-back ones first, so that they lose nothing to others.
        shortest: Characters from which on a paragraph counts.
    """
    seen: set[bytes] = set()
    kept, dropped = [], []
    for text in texts:
        own, paragraphs, characters = [], 0, 0
        parts, between = paragraphs_of(text)
        for paragraph in parts:
            mark = _mark(paragraph)
            if len(paragraph.strip()) >= shortest and mark in seen:
                paragraphs, characters = paragraphs + 1, characters + len(paragraph)
                continue
            seen.add(mark)
            own.append(paragraph)
        kept.append(between.join(own) if paragraphs else text)
        dropped.append(Dropped(paragraphs, characters, len(text)))
    return kept, dropped


def paragraphs_of(text: str) -> tuple[list[str], str]:
    """The paragraphs of a text, and what divides them: blank lines or, in a text without any, line ends."""
    if _BLANK.search(text.strip()):
        return _BLANK.split(text), "\n\n"
    return text.split("\n"), "\n"


def same_text(text: str) -> str:
    """A hash that is the same for texts which differ in white space and capitals only."""
    return _mark(text).hex()


def _mark(text: str) -> bytes:
    return hashlib.blake2b(_SPACE.sub(" ", text).strip().casefold().encode(), digest_size=16).digest()
