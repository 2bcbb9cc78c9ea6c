"""Where an answer begins to go round in circles, so that it can be rejected for that, and not for its length."""

from __future__ import annotations

from collections.abc import Sequence

NGRAM = 8  # tokens of a run
SPAN = 64  # runs that are looked at together
SHARE = 0.9  # of these have come before, in a loop


def loop_start(ids: Sequence[int]) -> int | None:
    """The number of tokens before the first of those that repeat what came before, and go on so; None: none do.

    From there on at least `SHARE` of the next `SPAN` runs of `NGRAM` tokens stand in the answer before.
    """
    known, repeats = set[tuple[int, ...]](), list[int]()
    for at in range(len(ids) - NGRAM + 1):
        run = tuple(ids[at : at + NGRAM])
        repeats.append(int(run in known))
        known.add(run)
    sums = [0]
    for one in repeats:
        sums.append(sums[-1] + one)
    for at in range(len(repeats) - SPAN + 1):
        if repeats[at] and sums[at + SPAN] - sums[at] >= SHARE * SPAN:
            return at
    return None


def cut_loop(ids: Sequence[int], keep: int | None) -> list[int]:
    """The answer up to its loop, with so many tokens of that, without an end; whole where it does not loop, or by None.

    A looping answer is as long as it may be, and what is preferred to it shorter: of whole ones a model learns to write
    little. What is kept shows the loop as it begins, where the model can still do otherwise.
    """
    start = None if keep is None else loop_start(ids)
    return list(ids) if keep is None or start is None else list(ids[: start + keep])
