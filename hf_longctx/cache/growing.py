"""A tensor that grows with the text and is shared between rows: pieces that are complete never change."""

# G heads, S slots, T = G heads or all query heads
from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack

from ..ops.pages import PAGE
from ..ops.pinned import POOL
from ..ops.sealed import is_sealed
from . import to_host
from .copies import shallow_copy

PIECE = PAGE  # slots of a complete piece
LEAST = 64  # slots of the smallest one
AT_ONCE = 2**28  # bytes of pieces that are made at once


class Growing:
    """A tensor (G, S, ...) in pieces of `PIECE` slots. How many slots are filled is for its owner to know.

    The last piece has room for more, so that a token is written without copying the others. Where gradients flow it is
    made again instead, as torch forbids writing into what a graph has read.

    It keeps the dtype of what was written first: under autocast that may be another one than outside of it.

    Args:
        whole: A tensor to begin with, in one piece, which is read only.
        paged: Pieces have all their slots from the start, and so keep their addresses.
        on_host: Pieces are in host memory, pinned where there is a GPU; what is read of them visits the device of what
            was written.
    """

    def __init__(self, whole: Tensor | None = None, *, paged: bool = False, on_host: bool = False) -> None:
        self.pieces: list[Tensor] = [] if whole is None else [whole]
        self.size = PIECE if whole is None else max(whole.shape[1], 1)
        self.paged, self.on_host = paged or on_host, on_host
        self.device: torch.device | None = None if whole is None else whole.device
        self.made = 0  # pieces so far: another number says that addresses have changed

    def write(self, start: int, new: Tensor) -> None:
        """Put `new`, (G, n, ...), into the slots from `start` on, of which those before are filled."""
        self.device = new.device
        if not self.pieces:
            self.pieces.append(self._empty(new, min(self.size, LEAST)))
            # what numbers below 0 look up: its first slot. Of host memory no more, which the host would clear
            (self.pieces[0][:, :1] if self.on_host else self.pieces[0]).zero_()
        done, count = 0, new.shape[1]
        while done < count:
            number, at = divmod(start + done, self.size)
            more = min(self.size - at, count - done)
            self._write(number, at, new if more == count else new.narrow(1, done, more))
            done += more

    def lacking(self, slots: int) -> int:
        """Pieces that it lacks for so many slots in all, once something has been written."""
        return max(-(-slots // self.size) - len(self.pieces), 0) if self.pieces else 0

    def _empty(self, like: Tensor, room: int, dtype: torch.dtype | None = None) -> Tensor:
        self.made += 1
        dtype = dtype or like.dtype
        shape = like.shape[0], self.size if self.paged else room, *like.shape[2:]
        if not self.on_host:
            return torch.empty(shape, dtype=dtype, device=like.device)
        return POOL.empty(shape, dtype, self.device)

    def _write(self, number: int, at: int, part: Tensor) -> None:
        held = self.pieces[number] if number < len(self.pieces) else None
        end, room = at + part.shape[1], 0 if held is None else held.shape[1]
        if torch.is_grad_enabled() and (part.requires_grad or (held is not None and held.requires_grad)):
            part = part.cpu() if self.on_host else part
            if held is not None:
                self.wait()  # the host copies it
            self.made += 1
            self.pieces[number:] = [part if held is None else torch.cat([held[:, :at], part], 1)]
            return
        if held is None or room < end or is_sealed(held):
            larger = self._empty(part, min(self.size, max(LEAST, 2 * room, end)), self.pieces[0].dtype)
            if held is not None:
                self.wait()  # the host copies it
                larger[:, :at] = held[:, :at]
            self.pieces[number:] = [larger]
            held = larger
        if self.on_host and part.is_cuda:
            to_host.copy(held, at, end, part)
            return
        (held if end - at == held.shape[1] else held.narrow(1, at, end - at)).copy_(part)

    def within(self, start: int, stop: int) -> Tensor | None:
        """The slots from `start` to before `stop`, to be written, where one whole piece has room for all of them."""
        number, at = divmod(start, self.size)
        if not self.paged or number >= len(self.pieces) or at + stop - start > self.size:
            return None
        if is_sealed(self.pieces[number]):
            return None
        return self.pieces[number].narrow(1, at, stop - start)

    def pages(self, start: int, stop: int) -> list[Tensor] | None:
        """The pages of these slots, to be written, those that lack included; None where some cannot be written."""
        if not self.paged or not self.pieces:
            return None
        first, last = start // self.size, (stop - 1) // self.size
        while len(self.pieces) <= last:
            self.pieces.append(self._empty(self.pieces[0], self.size))
        found = self.pieces[first : last + 1]
        whole = all(page.shape[1] == self.size and not (page.requires_grad or is_sealed(page)) for page in found)
        return found if whole else None

    def parts(self, start: int, stop: int) -> Iterator[Tensor]:
        """The filled slots from `start` to before `stop`, piece by piece, (G, n, ...) each; one at least."""
        self.join()
        for n in range(start // self.size, max(-(-stop // self.size), start // self.size + 1)):
            # as a whole, which the device fetches by itself, in order with what it has written
            piece = self.pieces[n].to(self.device, non_blocking=True)
            yield piece[:, max(start - n * self.size, 0) : stop - n * self.size]

    def cut(self, start: int, stop: int) -> Tensor:
        """The same in one tensor, (G, stop - start, ...)."""
        parts = list(self.parts(start, stop))
        if len(parts) == 1:
            return parts[0]
        with torch.autocast(parts[0].device.type, enabled=False):  # which concatenates no other half than its own
            return torch.cat(parts, 1)

    def take(self, slots: Tensor) -> Tensor:
        """What `slots`, (T, ...) of numbers that are filled, hold: (T, ..., ...). T is a multiple of G heads."""
        self.join()
        first = self.pieces[0]
        # of host memory, few slots are gathered where they are; for many, all of it visits the device
        there = self.on_host and slots.numel() < len(first) * self.size * len(self.pieces)
        at = slots.to(first.device) if there else slots
        repeats = len(at) // len(first)
        heads = (torch.arange(len(at), device=at.device) // repeats).view(-1, *(1,) * (at.ndim - 1))
        pieces = (piece if there else piece.to(slots.device, non_blocking=True) for piece in self.pieces)
        if len(self.pieces) == 1:
            return next(pieces)[heads, at].to(slots.device)
        found = first.new_empty(*at.shape, *first.shape[2:], device=at.device)
        number, within, heads = at // self.size, at % self.size, heads.expand_as(at)
        for n, piece in enumerate(pieces):
            here = (number == n).nonzero(as_tuple=True)
            found[here] = piece[heads[here], within[here]].to(found.dtype)
        return found.to(slots.device)

    def twin(self, filled: int) -> Growing:
        """Another one with the same first slots, that shares the pieces which are complete."""
        self.wait()
        twin, (whole, rest) = Growing(paged=self.paged, on_host=self.on_host), divmod(filled, self.size)
        twin.size, twin.device = self.size, self.device
        twin.pieces = self.pieces[:whole]
        for piece in self.pieces[whole : whole + 1]:
            twin.pieces.append(piece.clone() if piece.requires_grad else twin._empty(piece, piece.shape[1]))
            if not piece.requires_grad:
                twin.pieces[-1][:, : max(rest, 1)] = piece[:, : max(rest, 1)]
        return twin

    def join(self) -> None:
        """Let the device wait until what was written is in host memory, for those who read it by the device."""
        if self.on_host and not torch.compiler.is_compiling():
            to_host.join(self.device)

    def wait(self) -> None:
        """Until what was written is there, for those who read host memory without the device."""
        if self.on_host and self.device is not None and self.device.type == "cuda":
            self.join()
            torch.cuda.current_stream(self.device).synchronize()

    def __deepcopy__(self, memo: dict[int, Any]) -> Growing:
        """A copy of its own, in memory of the same kind; `copy.deepcopy` of a pinned tensor is not pinned."""
        self.wait()
        memo[id(self)] = twin = shallow_copy(self)
        twin.pieces = []
        for piece in self.pieces:
            if self.on_host and id(piece) not in memo and not piece.requires_grad:
                memo[id(piece)] = twin._empty(piece, piece.shape[1]).copy_(piece)
            twin.pieces.append(copy.deepcopy(piece, memo))
        return twin


def reserve(room: Iterable[tuple[Growing, int]]) -> None:
    """Make room for so many slots in all in each, where something has been written.

    A text that is read in chunks needs thousands of pieces, which a GPU's allocator finds in segments of a few of them.
    So those that are alike are made at once, as parts of one memory, which is free again when all of them are.
    """
    alike: dict[Any, list[Growing]] = {}
    for growing, slots in dict(room).items():  # layers share some
        for _ in range(growing.lacking(slots)):
            first = growing.pieces[0]
            if growing.on_host:  # each by itself, as threads make them
                growing.pieces.append(growing._empty(first, growing.size))
            else:
                kind = first.shape[0], growing.size, *first.shape[2:], first.dtype, first.device
                alike.setdefault(kind, []).append(growing)
    for (*shape, dtype, device), those in alike.items():
        each = max(AT_ONCE // max(math.prod(shape) * dtype.itemsize, 1), 1)
        for start in range(0, len(those), each):
            some = those[start : start + each]
            for growing, piece in zip(some, _pieces(len(some), shape, dtype, device), strict=True):
                growing.made += 1
                growing.pieces.append(piece)


def _pieces(count: int, shape: list[int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Tensors in one memory. Each has a storage of its own, so that a copy or a pickle of one holds nothing else."""
    try:
        whole = torch.empty(count, *shape, dtype=dtype, device=device)
    except torch.OutOfMemoryError:  # but there may be holes
        return [torch.empty(shape, dtype=dtype, device=device) for _ in range(count)]
    return [from_dlpack(to_dlpack(part)) for part in whole.unbind(0)]
