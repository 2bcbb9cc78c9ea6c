"""A command that measures something: what it takes, what it writes, and what it needs of others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One command.

    Args:
        name: Of its log, and of its folder for files that are not results.
        command: As a shell takes it.
        cards: How many it takes, all to itself unless it has a share.
        seconds: It is expected to take; with a share, beside others.
        writes: Files that it writes, or adds to: copied into the folder of the run.
        most: Seconds after which it is stopped where others wait for cards; None: half as much again as is expected,
            and a minute.
        after: Jobs that it needs something of: it is not begun before those of them that are in its run are over.
        reads: Files that other jobs write while they run, each with its job: it is not begun before they are there.
        share: Of a card, for a job of one card. Others have the rest of it, and its memory.
    """

    name: str
    command: str
    cards: int
    seconds: float
    writes: tuple[str, ...] = ()
    most: float | None = None
    after: tuple[str, ...] = ()
    reads: tuple[tuple[str, str], ...] = ()
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.most is not None and self.most < self.seconds:
            raise ValueError(f"{self.name}: most: {self.most:g}: expected at least its seconds, {self.seconds:g}.")
        if not 0 < self.share <= 1 or (self.share < 1 and self.cards != 1):
            given = f"share: {self.share:g} of {self.cards} card{'s' * (self.cards > 1)}"
            raise ValueError(f"{self.name}: {given}: expected a part of one card, above 0 and at most 1.")

    @property
    def limit(self) -> float:
        """Seconds after which it is stopped where others wait for cards."""
        return 1.5 * self.seconds + 60 if self.most is None else self.most
