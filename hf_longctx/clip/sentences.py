"""A long text as segments that fit a short text encoder: sentences, and parts of those that are too long."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Literal

Splitter = Literal["sentences", "longalign"] | Callable[[str], Iterable[str]]

# . ! ? ; and the marks that end a sentence in Chinese, Japanese, Arabic, Urdu, Hindi, Armenian and Amharic
_ENDS = ".!?;…。！？；｡．؟۔؛।॥։።"
_SPACED = ".!?;…"  # these stand inside numbers, names and ellipses as well, and end a sentence only before a space
_CLOSING = "\"'”’»」』】》〉）)]}"
_END = re.compile(rf"[{_ENDS}]+[{re.escape(_CLOSING)}]*|\n\s*\n")
# Before a name, a number or an example. Where they do end a sentence, two sentences stay together, which is harmless.
_NEVER_LAST = re.compile(
    "mr|mrs|ms|mx|dr|prof|rev|hon|st|mt|ft|gen|col|capt|lt|sgt|sen|rep|gov|messrs|mme|mlle|"
    r"e\.g|i\.e|cf|vs|viz|ca|approx|incl|esp|resp|figs?|eq|nos?|vol|pp|eds?|op|al",
    re.IGNORECASE,
)
# At the end of a sentence if a capital follows.
_SOMETIMES_LAST = re.compile(r"etc|jr|sr|inc|ltd|co|corp|bros|dept|est|min|max|[ap]\.m", re.IGNORECASE)
# Between clauses, then between words; empty matches, so that the parts together are the text
_JOINTS = (
    re.compile(r"(?<=[,:)\]]\s)(?=\S)|(?<=[，、：）」』])|(?<=\s)(?=[(\[—–])"),
    re.compile(r"(?<=\s)(?=\S)"),
)
_PUBLISHED = re.compile(r'"!|\.|\?|;"')


def split_sentences(text: str) -> list[str]:
    """The sentences of `text`, stripped, with the marks that end them. No character but white space is lost.

    Decimals (`3.5`), versions, file names, abbreviations (`Dr.`, `e.g.`), initials, list numbers (`1.`) and ellipses
    inside a sentence stay whole; `;` and an empty line end a sentence, and marks of scripts without spaces do so
    anywhere. A rule of thumb for captions in English: for other texts pass another function as `splitter`.
    """
    pieces, start = [], 0
    for mark in _END.finditer(text):
        if _ends_sentence(text[start : mark.start()], mark[0], text[mark.end() :]):
            pieces.append(text[start : mark.end()].strip())
            start = mark.end()
    pieces.append(text[start:].strip())
    return [piece for piece in pieces if piece]


def split_as_published(text: str) -> list[str]:
    """The pieces of LongAlign's published code, for models that were trained with it.

    It splits at every `.` and `?`, decimals and abbreviations too, at `"!` and at `;"`, drops these and ends each piece
    with a `.`. Its pattern was meant to be the four marks `! . ? ;`.
    """
    return [f"{piece}." for piece in _PUBLISHED.split(text) if piece] or [text]


def segments(
    text: str, count: Callable[[str], int], limit: int, splitter: Splitter = "sentences", *, merge: bool = False
) -> list[str]:
    """`text` in segments of at most `limit` tokens; [""] for a text without a word.

    Args:
        text: Any text.
        count: The number of tokens of a text, without start and end token.
        limit: The number of tokens that the encoder reads, without start and end token.
        splitter: "sentences" (`split_sentences`), "longalign" (`split_as_published`), or a function from a text to its
            sentences. A sentence longer than `limit` is split again: at commas and brackets, else between words, else
            within a word.
        merge: Let sentences that fit together share a segment.
    """
    parts = [part.strip() for piece in _split(text, splitter) for part in _fitted(piece, count, limit)]
    parts = [part for part in parts if part]
    return (_packed(parts, count, limit, " ") if merge else parts) or [""]


def _split(text: str, splitter: Splitter) -> list[str]:
    if callable(splitter):
        given = splitter(text)
        pieces = [given] if isinstance(given, str) else list(given)
        if isinstance(given, str) or not all(isinstance(piece, str) for piece in pieces):
            raise ValueError(
                f"the splitter made a {type(given).__name__} of {text[:40]!r}: expected a list of sentences."
            )
        pieces = [piece.strip() for piece in pieces if piece.strip()]
        if text.strip() and not pieces:
            raise ValueError(f"the splitter made nothing of {text[:40]!r}: expected the sentences of the text.")
        return pieces
    if splitter not in ("sentences", "longalign"):
        raise ValueError(
            f"splitter={splitter!r}: expected 'sentences', 'longalign' (the published code's), or a function from a "
            f"text to a list of sentences."
        )
    return split_sentences(text) if splitter == "sentences" else split_as_published(text)


def _ends_sentence(before: str, mark: str, after: str) -> bool:
    """Whether `mark`, found between `before` (from the start of the sentence) and `after`, ends a sentence."""
    if mark[0] not in _SPACED:
        return True  # an empty line, or a script without spaces
    if after and not after[0].isspace():
        return False
    following = after.lstrip()[:1]
    if mark[-1] in _CLOSING or mark[0] == "…" or mark.startswith(".."):
        return not following.islower()
    if mark != ".":
        return True
    words = before.split()
    word = words[-1].lstrip("([{\"'“‘«") if words else ""
    if len(words) == 1 and word.isdigit():
        return False  # the number of an item in a list
    if re.fullmatch(r"(?:\w\.)*[A-Z]", word):
        return False  # an initial, or several
    if _NEVER_LAST.fullmatch(word):
        return False
    return not _SOMETIMES_LAST.fullmatch(word) or following.isupper()


def _fitted(text: str, count: Callable[[str], int], limit: int) -> list[str]:
    """`text`, or parts of it as long as `limit` allows, cut at the largest joints; together they are `text`."""
    if count(text.strip()) <= limit:
        return [text]
    for joint in _JOINTS:
        parts = [part for part in joint.split(text) if part]
        if len(parts) > 1:
            break
    else:
        if len(text) == 1:
            raise ValueError(
                f"{text!r} alone has {count(text)} tokens, and a segment takes {limit}. Give an encoder that takes "
                f"more."
            )
        parts = [text[: len(text) // 2], text[len(text) // 2 :]]
    return _packed([piece for part in parts for piece in _fitted(part, count, limit)], count, limit, "")


def _packed(pieces: list[str], count: Callable[[str], int], limit: int, glue: str) -> list[str]:
    """Neighbours joined while they fit."""
    packed: list[str] = []
    for piece in pieces:
        joined = f"{packed[-1]}{glue}{piece}" if packed else piece
        if packed and count(joined.strip()) <= limit:
            packed[-1] = joined
        else:
            packed.append(piece)
    return packed
