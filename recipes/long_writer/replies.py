"""What a model replies, and the requests that are made again until a reply can be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

Made = TypeVar("Made")
SHOWN = 2000  # characters of an unusable reply that the model is shown


class Unusable(ValueError):
    """A reply is not what was asked for; the text is what is wrong with it."""


class LeftOut(ValueError):
    """One text gets no usable reply; the others go on."""


class Unreachable(OSError):
    """No request is answered any more."""


@dataclass(frozen=True)
class Reply:
    """What a model wrote, and whether it ended by itself."""

    text: str
    ended: bool

    @property
    def answer(self) -> str:
        """The text behind what a reasoning model thought."""
        return self.text.rpartition("</think>")[2].strip()


def encodable(text: str) -> str:
    """The text with "?" for halves of surrogate pairs, which JSON may hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


class Model(Protocol):
    """Replies to a chat. The attempt tells a request from the same one before it."""

    def __call__(self, messages: list[dict[str, str]], max_tokens: int, attempt: int) -> Reply: ...


def until_usable(
    ask: Model, prompt: str, max_tokens: int, read: Callable[[Reply], Made], what: str, tries: int
) -> Made:
    """What `read` makes of a reply. After an unusable one the model is told what is wrong, up to `tries` requests.

    Raises:
        LeftOut: No reply could be used.
    """
    first = [{"role": "user", "content": prompt}]
    messages, why = first, ""
    for attempt in range(tries):
        reply = ask(messages, max_tokens, attempt)
        try:
            return read(reply)
        except Unusable as error:
            why = str(error)
        shown = reply.answer[:SHOWN] or "(nothing)"
        again = f"This cannot be used: {why}. Write {what} again, as I asked for it."
        messages = [*first, {"role": "assistant", "content": shown}, {"role": "user", "content": again}]
    raise LeftOut(f"no usable {what.removeprefix('the ')} in {tries} tries; the last: {why}")
