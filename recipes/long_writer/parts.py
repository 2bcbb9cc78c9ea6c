"""A text in counted parts: "[3/8] ..." says how far it is, so that a model need not feel how much it has written."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from recipes.long_writer.sentences import Sentence, joined

PART_WORDS = 125  # of a part, about


def parts_for(words: int) -> int:
    """The number of parts of a text of so many words."""
    return max(1, round(words / PART_WORDS))


def counted(sentences: Sequence[Sentence], parts: int) -> str | None:
    """The text in parts of about equal length, cut between sentences; each begins with its number and their total.

    Returns:
        None if there are fewer sentences than parts.
    """
    total = len(sentences)
    if total < parts:
        return None
    words = list(accumulate((one.words for one in sentences), initial=0))
    cuts = [0]
    for k in range(1, parts):
        target = words[-1] * k / parts
        # each later part keeps a sentence
        cuts.append(min(range(cuts[-1] + 1, total - (parts - k) + 1), key=lambda at: abs(words[at] - target)))
    each = zip(cuts, [*cuts[1:], total], strict=True)
    return "\n\n".join(f"[{k}/{parts}] {joined(sentences[a:b])}" for k, (a, b) in enumerate(each, 1))
