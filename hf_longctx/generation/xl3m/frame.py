"""How much of a text fits the trained length, and which part of it is read."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...anatomy import refuse_encoder_decoder
from .prompt import Parts
from .reading import read
from .search import Search
from .selection import Selection, all_of
from .settings import Segmenting


class Frame:
    """The trained length of a model, and `new_tokens` that are written into it."""

    def __init__(self, model: Any, settings: Segmenting, new_tokens: int) -> None:
        self.model, self.settings, self.new_tokens = model, settings, new_tokens
        refuse_encoder_decoder(model, "XL3M")
        window = settings.window or getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if window is None:
            raise ValueError(
                f"{type(model).__name__}: its config has no max_position_embeddings. Say how many tokens it can read: "
                f"XL3M(window=...)."
            )
        self.window = int(window)

    def holds(self, n_tokens: int) -> bool:
        """Whether a prompt of so many tokens fits, with what is written after it."""
        return n_tokens + self.new_tokens <= self.window

    def check_room(self) -> None:
        """ValueError for segments that fit with no prompt at all."""
        self._room(Parts([], torch.empty(0, dtype=torch.long), []), self.window - self.new_tokens)

    def find(self, parts: Parts, document: Iterable[Any] | None, **options: Any) -> tuple[list[int], Selection]:
        """The ids of the text that are read between `parts.head` and `parts.question`, and how they were chosen.

        The text is `document`, or else that of `parts`; `options` are those of `Search`.
        """
        self._check(parts)
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        blocks = read(parts.text if document is None else document, vocabulary)
        fits = self.window - self.new_tokens - len(parts.head) - len(parts.question)
        text, held = _look_ahead(blocks, fits)
        if not held:
            raise ValueError(
                "the text is empty: there is nothing between head and question. Give a document, or say how many "
                "tokens of the prompt are the question (question=...)."
            )
        if sum(map(len, held)) <= fits:
            ids = torch.cat([block.cpu() for block in held]).tolist()
            return ids, all_of(len(ids))
        self._check_scored(parts)
        room = self._room(parts, fits)
        return Search(self.model, parts.head, parts.question, self.settings, room=room, **options)(text)

    def _check(self, parts: Parts) -> None:
        if len(parts.question) >= self.window:
            raise ValueError(
                f"the question has {len(parts.question):,} tokens, and the model reads {self.window:,}. Give a shorter "
                f"question; if only a part of this is the question, say which: its words, its ids, or how many tokens "
                f"at the end of the prompt (question=...)."
            )
        if not parts.question:
            raise ValueError("the question is empty: nothing stands after the text. Give at least 1 token.")

    def _check_scored(self, parts: Parts) -> None:
        if self.settings.score != "entropy" and len(parts.question) < 2:
            raise ValueError(
                f"a question of 1 token: score={self.settings.score!r} needs at least 2. Give a longer question, or "
                f"use XL3M(score='entropy')."
            )

    def _room(self, parts: Parts, fits: int) -> int:
        segment, most = self.settings.segment, self.settings.key_context or self.window // 4
        if fits < segment:
            raise ValueError(
                f"a segment of {segment:,} tokens does not fit the {max(fits, 0):,} that are left for "
                f"the text: the model reads {self.window:,}, the head has {len(parts.head):,}, the question "
                f"{len(parts.question):,}, and {self.new_tokens:,} are to be written. Make one of them smaller "
                f"(segment, head, question, max_new_tokens)."
            )
        if most < segment:
            raise ValueError(
                f"a segment of {segment:,} tokens does not fit the {most:,} that are read again, a quarter of the "
                f"{self.window:,} that the model reads. Use a shorter segment, or a larger key_context."
            )
        return min(most, fits)


def _look_ahead(blocks: Iterator[Tensor], most: int) -> tuple[Iterator[Tensor], list[Tensor]]:
    """The same blocks, and those of them that hold the first `most` tokens and one more, or all."""
    held: list[Tensor] = []
    for block in blocks:
        held.append(block)
        if sum(map(len, held)) > most:
            break
    return itertools.chain(held, blocks), held
