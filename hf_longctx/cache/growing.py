"""A tensor that grows with the text and is shared between rows: pieces that are complete never change."""

# G heads, S slots, T = G heads or all query heads
from __future__ import annotations

import torch
from torch import Tensor

PIECE = 8192  # slots of a complete piece
LEAST = 64  # slots of the smallest one


class Growing:
    """A tensor (G, S, ...) in pieces of `PIECE` slots. How many slots are filled is for its owner to know.

    The last piece has room for more, so that a token is written without copying the others. Where gradients flow it is
    made again instead, as torch forbids writing into what a graph has read.
    """

    def __init__(self, whole: Tensor | None = None) -> None:
        """Of nothing, or of a tensor in one piece, which is read only."""
        self.pieces: list[Tensor] = [] if whole is None else [whole]
        self.size = PIECE if whole is None else max(whole.shape[1], 1)

    def write(self, start: int, new: Tensor) -> None:
        """Put `new`, (G, n, ...), into the slots from `start` on, of which those before are filled."""
        if not self.pieces:
            self.pieces.append(new.new_zeros(new.shape[0], LEAST, *new.shape[2:]))
        while new.shape[1]:
            number, at = divmod(start, self.size)
            part, new = new[:, : self.size - at], new[:, self.size - at :]
            self._write(number, at, part)
            start += part.shape[1]

    def _write(self, number: int, at: int, part: Tensor) -> None:
        held = self.pieces[number] if number < len(self.pieces) else part[:, :0].detach()
        end = at + part.shape[1]
        if torch.is_grad_enabled() and (held.requires_grad or part.requires_grad):
            self.pieces[number:] = [torch.cat([held[:, :at], part], 1)]
        elif held.shape[1] >= end:
            held[:, at:end] = part
        else:
            room = min(self.size, max(LEAST, 2 * held.shape[1], end))
            larger = held.new_empty(held.shape[0], room, *held.shape[2:])
            larger[:, :at], larger[:, at:end] = held[:, :at], part
            self.pieces[number:] = [larger]

    def cut(self, start: int, stop: int) -> Tensor:
        """The filled slots from `start` to before `stop`, (G, stop - start, ...)."""
        numbers = range(start // self.size, max(-(-stop // self.size), start // self.size + 1))
        parts = [self.pieces[n][:, max(start - n * self.size, 0) : stop - n * self.size] for n in numbers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def take(self, slots: Tensor) -> Tensor:
        """What `slots`, (T, ...) of numbers that are filled, hold: (T, ..., ...). T is a multiple of G heads."""
        repeats = len(slots) // len(self.pieces[0])
        heads = (torch.arange(len(slots), device=slots.device) // repeats).view(-1, *(1,) * (slots.ndim - 1))
        found: Tensor | None = None
        for number, piece in enumerate(self.pieces):
            at = slots - number * self.size
            here = piece[heads, at.clamp(0, piece.shape[1] - 1)]
            if found is None:
                found = here
            else:
                after = (at >= 0).view(*at.shape, *(1,) * (here.ndim - at.ndim))
                found = torch.where(after, here, found)
        assert found is not None
        return found

    def twin(self, filled: int) -> Growing:
        """Another one with the same first slots, that shares the pieces which are complete."""
        twin, whole = Growing(), filled // self.size
        twin.size = self.size
        twin.pieces = [*self.pieces[:whole], *(piece.clone() for piece in self.pieces[whole : whole + 1])]
        return twin
