"""A conversation without an end: each turn reads only what is new, so a turn costs the same however long one talks."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .text_stream import MARK, render, written

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from .streaming import Reader

COMMANDS = "/stats shows how far the conversation is, /exit (or Ctrl-D) leaves; Ctrl-C stops an answer."


class Chat:
    """Turns of a conversation on a `Reader`.

    The chat template is never rendered for the whole conversation, which is not kept. One exchange with stand-ins for
    its words takes the place of what was said: what a template writes after an answer and before the next one does not
    depend on them. Templates that rewrite earlier turns (dropping the thoughts of a reasoning model) have no effect on
    what the model has read already.

    Args:
        reader: Where the conversation is read and written.
        tokenizer: The model's, with a chat template.
        system: What the conversation begins with, for templates that take it.
    """

    def __init__(self, reader: Reader, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> None:
        if not tokenizer.chat_template:
            raise ValueError(
                "this model's tokenizer has no chat template, so there is no telling where a turn ends. Use a model "
                "that was tuned for conversations, or `hf-longctx generate`."
            )
        self.reader, self.tokenizer = reader, tokenizer
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._begun = False
        self._last: int | None = None  # the last token written
        self.tokens, self.seconds = 0, 0.0  # of the last answer

    def answer(self, text: str, **settings: Any) -> Iterator[str]:
        """Read a turn of the user and write the answer, as text that comes piece by piece. Settings: `Reader.generate`.

        Whoever leaves the loop early has stopped the answer; the conversation goes on from what was written.
        """
        ids = list(self.tokenizer(self._turn(text), add_special_tokens=False, verbose=False)["input_ids"])
        if self._begun and ids[:1] == [self._last]:
            ids = ids[1:]  # the model ended its answer by itself
        self.reader.read(ids)
        self._begun, self._last, self.tokens, self.seconds = True, None, 0, 0.0
        yield from written(self.tokenizer, self._tokens(settings))

    def _turn(self, text: str) -> str:
        """What the template writes from the end of the last answer to the beginning of the next."""
        turn = {"role": "user", "content": text}
        if not self._begun:
            return render(self.tokenizer, [*self._system, turn])
        past = [{"role": "user", "content": "..."}, {"role": "assistant", "content": MARK}]
        _, found, new = render(self.tokenizer, [*self._system, *past, turn]).partition(MARK)
        if not found:
            raise ValueError("the chat template leaves earlier answers out, so a conversation cannot go on with it.")
        return new

    def _tokens(self, settings: dict[str, Any]) -> Iterator[int]:
        began = time.perf_counter()
        for token in self.reader.generate(**settings):
            self._last = token
            self.tokens += 1
            self.seconds = time.perf_counter() - began
            yield token

    def stats(self) -> str:
        """How far the conversation is and how fast the last answer came, in one line."""
        pace = f"{self.seconds / self.tokens:.3f} s a token" if self.tokens else "no answer yet"
        return f"position {self.reader.position:,}; {pace}; {self.reader.nbytes / 2**20:,.1f} MiB of cache"


def converse(chat: Chat, notes: Console, **settings: Any) -> None:
    """Talk in the terminal until /exit or the end of input. `notes` shows what is no answer."""

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
