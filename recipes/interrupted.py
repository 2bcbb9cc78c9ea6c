"""Ctrl-C ends a command of recipes/ at once with one line, in the place of a traceback, whatever it was doing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

Hook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]


def tell_in_one_line() -> None:
    """From now on in this process, if it is `python -m recipes.NAME`: that imports this package before all else."""
    if sys.argv[:1] == ["-m"]:  # as it is until NAME was found
        sys.excepthook = told_in_one_line(sys.excepthook)


def told_in_one_line(other: Hook) -> Hook:
    """What is done with an error that nothing caught: the `other` one, but for an interruption.

    That ends the process by the signal, as Python does, so that a shell's script ends with it; but before Python waits
    for threads. Those by which torch.compile talks to its workers would wait for ever: Ctrl-C has ended the workers.
    """

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            other(kind, error, trace)
            return
        print(str(error) or "interrupted; what was written by then stays.", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)

    return tell
