"""A conversation in a terminal."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

from .chat import Chat

COMMANDS = "/stats shows how far the conversation is, /exit (or Ctrl-D) leaves; Ctrl-C stops an answer."


def converse(chat: Chat, notes: Console, **settings: Any) -> None:
    """Talk in the terminal until /exit or the end of input. `notes` shows everything but the answers."""

    def note(text: str) -> None:
        notes.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    note(COMMANDS)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            note(f"\n{COMMANDS}")
            continue
        if line == "/exit":
            return
        if line.startswith("/"):
            note(chat.stats() if line == "/stats" else COMMANDS)
        elif line:
            with interruptible() as interrupted:
                for text in chat.answer(line, **settings):
                    print(text, end="", flush=True)
                    if interrupted():
                        break
            print()


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag instead of breaking a forward pass off half-way; a second Ctrl-C does break it off."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals go to the main thread only
        return
    pressed = threading.Event()

    def press(*_: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
