"""`Fit`: whether a run fits a card and its host, and the longest text that would."""

from __future__ import annotations

from dataclasses import dataclass

from ...console.units import show_bytes
from ...ops.host import PROCESS_BYTES
from ..options import LONGEST
from .memory import Need, need
from .run import TrainingRun
from .sizes import TrainingSizes

MARGIN = 1.03  # what is predicted to fill the last 3 % of a card is not said to fit


@dataclass(frozen=True)
class Room:
    """What there is: bytes of each card, and of their host; None where that is not known."""

    device: int
    host: int | None = None

    def why_not(self, needed: Need, processes: int) -> str:
        """What is lacking, with the bytes; "" if everything fits."""
        if needed.device * MARGIN > self.device:
            return (
                f"a card needs {show_bytes(needed.device)} of {show_bytes(self.device)} (at the peak, {needed.widest}; "
                f"{100 * (MARGIN - 1):.0f} % are left free)"
            )
        beside = processes * PROCESS_BYTES
        if needed.pinned and self.host is not None and needed.pinned + beside > self.host:
            return (
                f"the host needs {show_bytes(needed.pinned)} ({needed.pinned:,.0f} bytes) of pinned memory and "
                f"{show_bytes(beside)} for its processes, and has {show_bytes(self.host)}"
            )
        return ""


def fits(sizes: TrainingSizes, run: TrainingRun, room: Room) -> bool:
    """Whether card and host have what the run needs."""
    return not room.why_not(need(sizes, run), run.gpus // run.hosts)


def longest(sizes: TrainingSizes, run: TrainingRun, room: Room) -> int | None:
    """The most tokens of which all shorter texts fit too, to 1 %; None where `LONGEST` do, 0 where none fits."""
    low, high = 0, LONGEST
    if fits(sizes, run.but(tokens=LONGEST), room):
        return None
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(sizes, run.but(tokens=middle), room) else (low, middle)
    return low
