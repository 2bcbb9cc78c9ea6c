"""What calibration measures within a time: loads as long as the time allows, each until two passes agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

FIRST = 1024  # tokens of the first measurement, before it is known how many fit the time
SHORT = 16  # tokens of a rank in the shortest load: next to no work for a device
AGREE = 1.2  # two passes that differ by more: one of them compiled, or the host was disturbed


@dataclass(frozen=True)
class Load:
    """Documents of one length in a group.

    Args:
        documents: How many.
        length: Tokens of each.
        ranks: Of the group, a power of two.
    """

    documents: int
    length: int
    ranks: int

    def row(self, size: int) -> tuple[float, float, float, float]:
        """What it takes of a token, a pair, an exchanged token and a pass, as it counts for groups of a size."""
        tokens, pairs = self.documents * self.length, self.documents * self.length * (self.length + 1) / 2
        return tokens / self.ranks, pairs / self.ranks, tokens if size > 1 else 0, 1


class Passes:
    """Runs loads and keeps their seconds. The quickest pass of a load counts: whatever disturbs one makes it slower.

    Args:
        run: Runs a load, forward and backward, and returns its seconds: the same number on every rank.
    """

    def __init__(self, run: Callable[[Load], float]) -> None:
        self.run = run
        self.took: dict[Load, list[float]] = {}

    def steady(self, load: Load) -> float:
        """Twice, and once more where these do not agree: the first pass compiles, and fills caches."""
        times = self.took.setdefault(load, [])
        for _ in range(2):
            self.again(load)
        if max(times[-2:]) > AGREE * min(times[-2:]):
            self.again(load)
        return min(times)

    def again(self, load: Load) -> None:
        """Once more."""
        self.took[load].append(self.run(load))

    def seconds(self, load: Load) -> float:
        """The quickest pass of a load."""
        return min(self.took[load])

    @property
    def spent(self) -> float:
        """Seconds so far, without what first passes compiled."""
        return sum(min(times) + sum(times[1:]) for times in self.took.values())


def measured(run: Callable[[Load], float], ranks: int, tokens: int, seconds: float) -> dict[Load, list[float]]:
    """Seconds of passes with loads in groups of each size, for so much time, or each load twice if that takes longer.

    Args:
        run: Runs a load, forward and backward, and returns its seconds: the same number on every rank.
        ranks: How many there are.
        tokens: The most tokens of a rank; fewer where they would take too long.
        seconds: How long it may take in all, besides what first passes compile.
    """
    passes = Passes(run)
    sizes = [2**k for k in range(ranks.bit_length())]
    shortest = [Load(1, max(1, min(SHORT, tokens // SHORT)) * size, size) for size in sizes]
    for load in shortest:  # groups are connected in it
        passes.steady(load)
    lengths = [min(FIRST, tokens)]
    passes.steady(Load(1, lengths[0], 1))
    while lengths[-1] < tokens:
        longer = min(2 * lengths[-1], tokens)
        if passes.spent + _to_come(passes, lengths, longer, shortest) > seconds:
            break
        lengths.append(longer)
        passes.steady(Load(1, longer, 1))
    loads = _loads(passes, lengths[-1], shortest)
    for load in loads[1:]:
        if load not in passes.took:
            passes.steady(load)
    loads += shortest
    left = True
    while left:  # rounds of the loads that there is still time for
        left = False
        for load in loads:
            if passes.spent + passes.seconds(load) <= seconds:
                passes.again(load)
                left = True
    return passes.took


def _loads(passes: Passes, length: int, shortest: list[Load]) -> list[Load]:
    """What tells tokens from pairs on one rank, the longest document first; in groups, exchanges from a pass."""
    half, part, piece = (max(1, length // n) for n in (2, 4, 16))
    loads = [Load(1, length, 1), Load(16, piece, 1), Load(1, part, 1)]
    for least in shortest[1:]:
        # few long documents and twice as many tokens in short ones, which take a quarter and half of a rank's tokens:
        # all of them where the devices would not be busier than the host
        busy = passes.seconds(loads[0]) > 8 * passes.seconds(least)
        size = least.ranks if busy else 2 * least.ranks
        loads += [Load(size // 2, half, least.ranks), Load(2 * size, part, least.ranks)]
    return loads


def _to_come(passes: Passes, lengths: list[int], longer: int, shortest: list[Load]) -> float:
    """Seconds of all passes if a longer document is the longest: each load as often as those so far.

    Where a document of n tokens takes a n + b n^2, it takes 6 - 8 / g times as long with 2 n as with n, g being how
    many times as long it takes with n as with n / 2. That is between twice, where tokens count, and 4 times.
    """
    alone = {n: passes.seconds(Load(1, n, 1)) for n in lengths}
    last = alone[lengths[-1]]
    growth = last / alone[lengths[-2]] if len(lengths) > 1 else 4.0
    whole = last * min(4.0, max(2.0, 6 - 8 / growth))
    pieces = min(seconds * longer / n for n, seconds in alone.items())  # as many tokens in shorter documents
    floors = [passes.seconds(load) for load in shortest[1:]]
    groups = sum(max(last / 2, floor) + max(pieces / 2, floor) for floor in floors)
    times = sum(map(len, passes.took.values())) / len(passes.took)
    return times * (whole + pieces + pieces / 4 + groups)
