"""Token ids of texts that are tokenised separately. Joined, they are those of the whole text tokenised at once.

A tokenizer does not know that a text continues another: SentencePiece models put a space before it, and others choose
other tokens at its ends. So a text is tokenised together with the text before it (or with a stand-in, where that is
far away or no longer text), whose ids are then removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .tokens import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BEFORE = ("a", "a\n", ".")  # stand-ins for a text that ends


def ids_after(
    tokenizer: PreTrainedTokenizerBase, before: str, text: str, known: Sequence[int] | None = None
) -> list[int]:
    """The ids of `text` where it continues a text that has its ids already.

    Args:
        tokenizer: The model's.
        before: The end of that text, or a stand-in that ends alike: "a" for a word.
        text: The continuation.
        known: The ids of `before` that are fixed, if not all: those of `ids_before`.
    """
    if not text:
        return []
    there = encode(tokenizer, before) if known is None else list(known)
    both = encode(tokenizer, before + text)
    if both[: len(there)] == there:
        return both[len(there) :]
    # a token covers the end of one and the start of the other: the former's ids stay, so a stand-in takes its place
    for other in _BEFORE:
        there, both = encode(tokenizer, other), encode(tokenizer, other + text)
        if both[: len(there)] == there:
            return both[len(there) :]
    return encode(tokenizer, text)


def ids_before(tokenizer: PreTrainedTokenizerBase, text: str, after: str = "") -> list[int]:
    """The first ids of `text` that stay the same whatever words follow it, where `text` continues `after`."""
    # spaces at its end are a part of the next word's token
    whole, *others = (ids_after(tokenizer, after, end) for end in (text, f"{text}a", f"{text}Q", text.rstrip(" ")))
    return whole[: min(common(whole, other) for other in others)]


def ids_of_parts(tokenizer: PreTrainedTokenizerBase, *parts: str) -> list[list[int]]:
    """The ids of the joined parts, cut where each ends. A token that two of them share belongs to the later one."""
    whole, ends = encode(tokenizer, "".join(parts)), [0]
    for n in range(1, len(parts)):
        # parts behind it that are empty change nothing
        before = encode(tokenizer, "".join(parts[:n])) if any(parts[n:]) else whole
        ends.append(max(ends[-1], common(before, whole)))
    return [whole[start:end] for start, end in zip(ends, [*ends[1:], len(whole)], strict=True)]


def common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The number of ids (or characters) at the start that are the same in both."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
