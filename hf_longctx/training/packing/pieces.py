"""Documents as pieces that fit into a pack: whole, split, dropped or refused, and nothing of it silently."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...settings import is_whole
from .store import TokenStore

TOO_LONG = ("split", "drop", "refuse")
SHOWN = 5  # documents that a message names


@dataclass(eq=False)
class Pieces:
    """What becomes of documents.

    Args:
        spans: Where each piece begins and ends in the store.
        too_long: Numbers of the documents that are longer than a pack.
        no_targets: Numbers of the documents without any target.
        left_out: Pieces without a target, of documents that have some.
    """

    spans: list[tuple[int, int]] = field(default_factory=list)
    too_long: list[int] = field(default_factory=list)
    no_targets: list[int] = field(default_factory=list)
    left_out: int = 0


def pieces_of(store: TokenStore, length: int, too_long: str) -> Pieces:
    """Pieces of at most `length` tokens. A document's first token is no target; a piece without one is left out.

    Successive pieces of a split document share one token, so that every target stays one.
    """
    if not is_whole(length, 2) or too_long not in TOO_LONG:
        raise ValueError(
            f"length={length!r}, too_long={too_long!r}: expected a whole number of tokens, at least 2, and one of "
            f"{', '.join(TOO_LONG)}."
        )
    found, targets = Pieces(), store.targets_before()
    for number, (start, n) in enumerate(zip(store.edges, store.lengths, strict=False)):
        if n == 0 or targets[start + n] == targets[start + 1]:
            found.no_targets.append(number)
            continue
        if n > length:
            found.too_long.append(number)
            if too_long == "drop":
                continue
        for at in range(start, start + n - 1, length - 1):
            end = min(at + length, start + n)
            if targets[end] > targets[at + 1]:
                found.spans.append((at, end))
            else:
                found.left_out += 1
    if found.too_long and too_long == "refuse":
        longest = max(found.too_long, key=lambda number: store.lengths[number])
        raise ValueError(
            f"{len(found.too_long)} documents are longer than a pack of {length} tokens: {named(found.too_long)} (the "
            f"longest, number {longest}, has {store.lengths[longest]}). Make packs longer, or choose too_long='split' "
            f"or 'drop'."
        )
    if not found.spans:
        raise ValueError(
            f"no target tokens in {len(store.lengths)} documents: {len(found.no_targets)} have none, and "
            f"{len(found.too_long)} are longer than {length} tokens. Look at their labels (-100 is no target)."
        )
    return found


def named(numbers: list[int]) -> str:
    """Numbers of documents for a message: the first few."""
    shown = ", ".join(map(str, numbers[:SHOWN]))
    return f"numbers {shown}{', ...' if len(numbers) > SHOWN else ''}"
