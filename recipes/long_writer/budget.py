"""The minutes of a chain, which may be those of several calls: a machine ends a command after a while."""

from __future__ import annotations

import json
import time
from pathlib import Path

from hf_longctx.storage.files import write_whole


class NotFinishedError(SystemExit):
    """The time of a call is over, and the chain is not: what was done is kept."""

    def __init__(self, what: str, out: Path) -> None:
        super().__init__(f"the time of this call is over in {what}; the same command with --resume goes on from {out}.")


class Budget:
    """How much time a chain has, and how much of it this call.

    Args:
        minutes: Of the chain, earlier calls of it included; None: without end.
        call: Minutes of this call; None: as many as the chain has left.
        file: Keeps the seconds of earlier calls.
        resume: They count; else the chain begins now.
    """

    def __init__(self, minutes: float | None, call: float | None, file: Path, *, resume: bool) -> None:
        self.seconds, self.file = None if minutes is None else 60 * minutes, file
        self._begun = time.monotonic()
        self._before = float(json.loads(file.read_text(encoding="utf-8"))) if resume and file.exists() else 0.0
        self.stop = None if call is None else self._begun + 60 * call
        self.half = None if call is None else self._begun + 30 * call

    @property
    def ends(self) -> float | None:
        """`time.monotonic()` at which the chain has to be done, were all of it in this call."""
        return None if self.seconds is None else self._begun - self._before + self.seconds

    def keep(self) -> None:
        """Keep the seconds of the chain up to now."""
        write_whole(self.file, json.dumps(self._before + time.monotonic() - self._begun).encode())
