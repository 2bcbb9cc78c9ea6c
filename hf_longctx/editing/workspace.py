"""Where an edit is made: layers beside the caller's own, which hold the tokens that stay and which a model writes.

A layer knows which of the new text's tokens it has; `begin` says which tokens the next forward brings, and which of
them it is to keep. Nothing of the caller's cache is touched before `commit`.
"""

# G key/value heads, S stored keys, L tokens of a forward, N tokens of the new text, D head dim; the batch is always 1
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..cache import KeyValues, UnrotatedLayer
from ..cache.stock import is_window, owner_of
from .difference import Match

Move = Callable[[Tensor, int, int], Tensor]  # keys, the position of the first one, by how much


@dataclass(frozen=True)
class Span:
    """Tokens from `start` to before `end` of the new text."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    def cut(self, other: Span) -> Span:
        """The tokens of both; empty if there are none."""
        start = max(self.start, other.start)
        return Span(start, max(start, min(self.end, other.end)))


class _Buffer:
    """Keys and values of the whole new text in one piece; those that stay are put in their new places."""

    def __init__(self, keys: Tensor, values: Tensor, copies: Sequence[Match], length: int, move: Move | None) -> None:
        if len(copies) == 1 and copies[0] == (0, 0, length):  # only an end was cut off
            self.k, self.v = keys[:, :, :length], values[:, :, :length]
            return
        self.k = keys.new_empty(*keys.shape[:2], length, keys.shape[3])
        self.v = values.new_empty(*values.shape[:2], length, values.shape[3])
        for old, new, n in copies:
            kept = keys[:, :, old : old + n]
            self.k[:, :, new : new + n] = kept if move is None else move(kept, old, new - old)
            self.v[:, :, new : new + n] = values[:, :, old : old + n]

    def write(self, run: Span, fresh: Sequence[Span], keys: Tensor, values: Tensor) -> None:
        for span in fresh:
            part = slice(span.start - run.start, span.end - run.start)
            self.k[:, :, span.start : span.end] = keys[:, :, part]
            self.v[:, :, span.start : span.end] = values[:, :, part]


class _Stock(DynamicLayer):
    """The common part of the two kinds of stock layers."""

    run = Span(0, 0)
    fresh: Sequence[Span] = ()
    written = True

    def begin(self, run: Span, fresh: Sequence[Span]) -> None:
        self.run, self.fresh, self.written = run, fresh, False

    def get_seq_length(self) -> int:
        return self.run.end if self.written else self.run.start

    @abstractmethod
    def commit(self, layer: Any) -> None:
        """Put the new keys and values into the caller's layer."""


class _FullWork(_Stock):
    """A `DynamicLayer` in the making."""

    def __init__(self, layer: DynamicLayer, copies: Sequence[Match], length: int, move: Move) -> None:
        super().__init__()
        self.buffer = _Buffer(layer.keys, layer.values, copies, length, move)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.buffer.write(self.run, self.fresh, key_states, value_states)
        self.written = True
        return self.buffer.k[:, :, : self.run.end], self.buffer.v[:, :, : self.run.end]

    def commit(self, layer: Any) -> None:
        layer.keys, layer.values = self.buffer.k, self.buffer.v


class _WindowWork(_Stock):
    """A `DynamicSlidingWindowLayer` in the making: pieces of the text, as its own window has only the last tokens."""

    is_sliding = True

    def __init__(self, layer: DynamicSlidingWindowLayer, copies: Sequence[Match], length: int, move: Move) -> None:
        super().__init__()
        self.reach, self.length = layer.sliding_window - 1, length
        self.pieces: list[tuple[Span, Tensor, Tensor]] = []
        for first, new, n in in_window(layer, copies):
            if n:
                at = slice(first - first_kept(layer), first - first_kept(layer) + n)
                moved = move(layer.keys[:, :, at], first, new - first)
                self.pieces.append((Span(new, new + n), moved, layer.values[:, :, at]))
        self.empty = layer.keys[:, :, :0], layer.values[:, :, :0]
        self.is_initialized = True

    def _before(self, end: int) -> tuple[Tensor, Tensor]:
        """The keys and values right before `end`, without a gap, as far as the window reaches."""
        keys, values, start, begin = [self.empty[0]], [self.empty[1]], end, max(end - self.reach, 0)
        for span, k, v in reversed(self.pieces):
            part = span.cut(Span(begin, start))
            if len(part) and part.end == start:
                at = slice(part.start - span.start, part.end - span.start)
                keys.append(k[:, :, at])
                values.append(v[:, :, at])
                start = part.start
        return torch.cat(keys[::-1], 2), torch.cat(values[::-1], 2)

    def begin(self, run: Span, fresh: Sequence[Span]) -> None:
        super().begin(run, fresh)
        self.past = self._before(run.start)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        kept = []
        for span, k, v in self.pieces:  # those that this forward reads again are replaced
            for part in (span.cut(Span(0, self.run.start)), span.cut(Span(self.run.end, self.length))):
                if len(part):
                    at = slice(part.start - span.start, part.end - span.start)
                    kept.append((part, k[:, :, at], v[:, :, at]))
        self.pieces = sorted([*kept, (self.run, key_states, value_states)], key=lambda piece: piece[0].start)
        self.written = True
        return torch.cat([self.past[0], key_states], 2), torch.cat([self.past[1], value_states], 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        held = self.past[0].shape[2]
        return held + query_length, self.run.start - held

    def commit(self, layer: Any) -> None:
        layer.keys, layer.values = self._before(self.length)
        assert layer.keys.shape[2] == min(self.reach, self.length)
        layer.cumulative_length = self.length


class _UnrotatedWork(UnrotatedLayer):
    """An editable un-rotated layer, which has not evicted anything, in the making."""

    def __init__(self, layer: Any, copies: Sequence[Match], length: int) -> None:
        super().__init__(layer.owner)
        kept = layer.editable_view()
        self.buffer = _Buffer(kept.k, kept.v, copies, length, None)
        self.all_pos = torch.arange(length, device=kept.pos.device)[None]
        self.is_initialized = True
        self.written = True

    def begin(self, run: Span, fresh: Sequence[Span]) -> None:
        self.run, self.fresh, self.written = run, fresh, False
        self.seen = run.start
        self.pos = self.all_pos[:, : run.start]

    def keep(self, new: KeyValues) -> KeyValues:
        """Write those of `new` that the edit is to keep."""
        host = self.buffer.k.device
        self.buffer.write(self.run, self.fresh, new.k.to(host), new.v.to(host))
        self.written = True
        end = self.run.end
        readable = KeyValues(self.buffer.k[:, :, :end], self.buffer.v[:, :, :end], self.all_pos[:, :end])
        return readable.map(lambda t: t.to(new.k.device))  # moves nothing but keys kept on the host

    def commit(self, layer: Any) -> None:
        """Put the new keys and values into the caller's layer."""
        layer.hold(KeyValues(self.buffer.k, self.buffer.v, self.all_pos))


Work = _FullWork | _WindowWork | _UnrotatedWork


def work_on(layer: Any, copies: Sequence[Match], length: int, move: Move) -> Work:
    """The layer beside `layer` in which an edit is made."""
    if owner_of(layer) is not None:
        return _UnrotatedWork(layer, copies, length)
    kind = _WindowWork if is_window(layer) else _FullWork
    return kind(layer, copies, length, move)


def first_kept(layer: DynamicSlidingWindowLayer) -> int:
    """The position of the first key that a sliding-window layer still has."""
    return int(layer.cumulative_length) - int(layer.keys.shape[2])


def in_window(layer: DynamicSlidingWindowLayer, copies: Sequence[Match]) -> list[Match]:
    """The part of each copy that a sliding-window layer still has; it may be empty."""
    start = first_kept(layer)
    cut = [max(start - old, 0) for old, _, _ in copies]
    return [Match(c.old + n, c.new + n, max(c.length - n, 0)) for c, n in zip(copies, cut, strict=True)]
