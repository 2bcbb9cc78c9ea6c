"""The prose of a document as sentences whose words are counted, so that it can be cut near any number of words."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from hf_longctx.evaluation.benchmarks.longwriter import n_words
from hf_longctx.text.repeats import paragraphs_of

LETTERS = 0.7  # of the characters of prose; code, tables and lists of references have fewer
PARAGRAPH_END = 0.02  # of the asked words: by so much farther from them a paragraph's end may lie than a sentence's
FEWEST = 6  # words of prose that does not end as a sentence does; headings have fewer
_SHORT = (
    r"(?<!\b[A-Zp])(?<!\bMr)(?<!\bDr)(?<!\bSt)(?<!\bMrs)(?<!\bNo)(?<!\bcf)(?<!\bpp)(?<!\bvol)"  # no ends of sentences
)
_END = re.compile(rf"""{_SHORT}[.!?]["')\]”’]*(?=\s+["'(\[“‘]*[A-Z0-9])""")
_ENDED = re.compile(r"""[.!?]["')\]”’]*$""")
_CODE = re.compile(r"^\s*[{}];?\s*$", re.MULTILINE)
_MARK = re.compile(r"\[\d+/\d+\]")


@dataclass(frozen=True)
class Sentence:
    """A sentence, or the last words of a paragraph.

    Args:
        text: Without line ends.
        words: As LongWriter counts them.
        last: It ends its paragraph.
        whole: It ends as a sentence does, so that a text may stop after it.
    """

    text: str
    words: int
    last: bool
    whole: bool


@dataclass(frozen=True)
class Document:
    """The sentences of a document, in order."""

    sentences: tuple[Sentence, ...]

    @cached_property
    def before(self) -> list[int]:
        """The words before each sentence, and those of all of them."""
        return list(accumulate((one.words for one in self.sentences), initial=0))

    def cut(self, start: int, words: int, least: int, most: int) -> int | None:
        """Where a text from sentence `start` on stops: after `least` to `most` words and as near `words` as possible.

        It stops after a whole sentence, with a paragraph if one ends about as near.

        Returns:
            The sentence after the last one; None if no sentence ends within the bounds.
        """
        origin = self.before[start]
        low, high = bisect_left(self.before, origin + least), bisect_right(self.before, origin + most)
        ends = [at for at in range(max(low, start + 1), high) if self.sentences[at - 1].whole]

        def far(at: int) -> float:
            return abs(self.before[at] - origin - words) - PARAGRAPH_END * words * self.sentences[at - 1].last

        return min(ends, key=far, default=None)

    def text(self, start: int, stop: int) -> str:
        """Sentences as running text, with a blank line between paragraphs."""
        return joined(self.sentences[start:stop])


def joined(sentences: Sequence[Sentence]) -> str:
    """Sentences as running text, with a blank line between paragraphs."""
    return "".join(one.text + ("\n\n" if one.last else " ") for one in sentences).strip()


def document_of(text: str) -> Document:
    """The prose of a text. Short headings, code, tables and what has marks of counted parts are left out."""
    found: list[Sentence] = []
    for paragraph in paragraphs_of(text)[0]:
        line = " ".join(paragraph.split())
        if _CODE.search(paragraph) or not _is_prose(line):
            continue
        starts = [0, *(match.end() for match in _END.finditer(line))]
        parts = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], len(line)], strict=True)]
        found += [
            Sentence(part, n_words(part), last, _ENDED.search(part) is not None)
            for part, last in zip(parts, [False] * (len(parts) - 1) + [True], strict=True)
        ]
    return Document(tuple(found))


def _is_prose(line: str) -> bool:
    dense = sum(map(str.isalpha, line)) >= LETTERS * len(line.replace(" ", ""))
    return dense and bool(_ENDED.search(line) or n_words(line) >= FEWEST) and not _MARK.search(line)
