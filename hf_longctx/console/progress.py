"""Progress of a run: a bar on a terminal, elsewhere a plain line on standard error from time to time."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console

from .units import show_seconds

EVERY = 30.0  # least seconds between two lines; a shorter run has none


class Progress:
    """Counts the finished units of a run; use it as a context manager.

    Args:
        unit: The name of the units, in the plural.
        total: Their number, None if unknown.
        console: The terminal for the bar; by default, or if it is no terminal, standard error. If that is none either,
            there are lines of text, the first after `EVERY` seconds.
    """

    def __init__(self, unit: str, total: int | None = None, console: Console | None = None) -> None:
        self.done = 0
        self._unit, self._total, self._what = unit, total, ""
        places = [one for one in (console, Console(stderr=True)) if one is not None]
        self._terminal = next((one for one in places if on_terminal(one)), None)
        self._bar: Any = None
        self._began = self._told = time.monotonic()

    def __enter__(self) -> Progress:
        self._began = self._told = time.monotonic()
        if self._terminal is not None:
            from rich import progress as bars

            counted = bars.MofNCompleteColumn() if self._total is not None else bars.TextColumn("{task.completed:,}")
            left = bars.TimeRemainingColumn() if self._total is not None else bars.TimeElapsedColumn()
            columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), counted, bars.TextColumn(self._unit))
            self._bar = bars.Progress(*columns, left, console=self._terminal, transient=self._total is None)
            self._task = self._bar.add_task(self._what, total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the bar; a second call does nothing."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def describe(self, what: str) -> None:
        """Name the current work."""
        self._what = what
        self._show()

    def advance(self, n: int) -> None:
        """Add `n` finished units."""
        self.reach(self.done + n)

    def reach(self, done: int) -> None:
        """Set the number of finished units."""
        self.done = done
        self._show()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=self._what, completed=self.done)
            return
        now = time.monotonic()
        if self._terminal is not None or now - self._told < EVERY:
            return
        self._told, seconds = now, now - self._began
        line = f"{self._what}: " if self._what else ""
        line += f"{self.done:,}" if self._total is None else f"{self.done:,} of {self._total:,}"
        line += f" {self._unit}, {show_seconds(seconds)} so far"
        if self._total and 0 < self.done < self._total:
            line += f", about {show_seconds(seconds * (self._total - self.done) / self.done)} left"
        print(line, file=sys.stderr, flush=True)


def counted(pieces: Iterable[Any], progress: Progress) -> Iterator[Any]:
    """The same pieces; each counts when the next one is requested, so after its use."""
    for piece in pieces:
        yield piece
        progress.advance(len(piece))


def on_terminal(console: Console) -> bool:
    """Whether this is a real terminal: colour can be forced on a file as well."""
    return console.is_interactive and console.file.isatty()


@contextmanager
def bars_as_lines() -> Iterator[None]:
    """Without a terminal, other libraries' bars (tqdm) become plain lines; those shorter than `EVERY` vanish."""
    if sys.stderr.isatty():
        yield
        return
    from tqdm.std import tqdm

    stock = tqdm.__init__

    def plain(self: Any, *args: Any, **settings: Any) -> None:
        forced: dict[str, Any] = dict.fromkeys(("mininterval", "maxinterval", "delay"), EVERY)
        forced |= {"file": _Lines(sys.stderr), "leave": False}
        # only the iterable, a name and a total may be positional: the others would collide
        stock(self, *args[:3], **{**settings, **forced, "bar_format": "{desc}: {n_fmt} of {total_fmt} in {elapsed}"})

    tqdm.__init__ = plain
    try:
        yield
    finally:
        tqdm.__init__ = stock


@contextmanager
def beyond_on_purpose() -> Iterator[None]:
    """Without transformers' warning that `generate` exceeds the trained length: that is intended here."""
    logger = logging.getLogger("transformers.generation.stopping_criteria")

    def kept(record: logging.LogRecord) -> bool:
        return "exceeded the model's predefined maximum length" not in record.getMessage()

    logger.addFilter(kept)
    try:
        yield
    finally:
        logger.removeFilter(kept)


class _Lines:
    """A stream that writes a bar's successive states as lines."""

    encoding = "utf-8"

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        line = text.replace("\x1b[A", "").strip("\r\n ").removeprefix(": ")
        if line:
            self._stream.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return False
