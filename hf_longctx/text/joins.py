"""Token ids of texts that are tokenised apart. Put together, they are those of the whole text tokenised at once.

A tokenizer does not know that a text goes on from another: SentencePiece models put a space before it, and others
choose other tokens at its ends. So a text is tokenised together with what stands before it (or with a stand-in, where
that is far away or not text any more), and the ids of that are taken off again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BEFORE = ("a", "a\n", ".")  # stand-ins for a text that ends


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Of a text that begins here, without the tokenizer's own first and last tokens."""
    # a text longer than the model's own window is what this is about, not worth a warning
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []


def ids_after(
    tokenizer: PreTrainedTokenizerBase, before: str, text: str, known: Sequence[int] | None = None
) -> list[int]:
    """The ids of `text` where it goes on from a text whose ids are there already.

    Args:
        tokenizer: The model's.
        before: What that text ends with, or a stand-in that ends alike: "a" for a word.
        text: What follows.
        known: The first ids of `before` that are there, if not all: those of `ids_before`.
    """
    if not text:
        return []
    there = ids_of(tokenizer, before) if known is None else list(known)
    both = ids_of(tokenizer, before + text)
    if both[: len(there)] == there:
        return both[len(there) :]
    # a token of both: what is there stays, so the rest follows as it would follow something else
    for other in _BEFORE:
        there, both = ids_of(tokenizer, other), ids_of(tokenizer, other + text)
        if both[: len(there)] == there:
            return both[len(there) :]
    return ids_of(tokenizer, text)


def ids_before(tokenizer: PreTrainedTokenizerBase, text: str, after: str = "") -> list[int]:
    """Those first ids of `text` that stay as they are whatever words follow it. It goes on from `after`."""
    # spaces at its end are a part of the next word's token
    whole, *others = (ids_after(tokenizer, after, end) for end in (text, f"{text}a", f"{text}Q", text.rstrip(" ")))
    return whole[: min(common(whole, other) for other in others)]


def ids_of_parts(tokenizer: PreTrainedTokenizerBase, *parts: str) -> list[list[int]]:
    """The ids of the parts put together, cut where one ends. A token that two of them share is the later one's."""
    whole, ends = ids_of(tokenizer, "".join(parts)), [0]
    for n in range(1, len(parts)):
        ends.append(max(ends[-1], common(ids_of(tokenizer, "".join(parts[:n])), whole)))
    return [whole[start:end] for start, end in zip(ends, [*ends[1:], len(whole)], strict=True)]


def common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many ids (or characters) both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
