"""A cache layer that keeps the first tokens and the last ones, in constant memory."""

# B batch, G key/value heads, N slots or columns, L new tokens, T tokens read so far, D head dim
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..method import LongContextMethod
from ..ops.sealed import is_sealed
from .base import UnrotatedLayer
from .once import Apply
from .ring import Ring
from .rolling import roll
from .slots import KeyValues

FAR = torch.iinfo(torch.long).max


class SinkWindowLayer(UnrotatedLayer):
    """Keeps the first `n_first` real tokens and the last `n_last`: constant memory however much is read.

    `sinks` holds the first tokens (whether or not they are still among the last). The others are in order while whole
    chunks are read, and in a `Ring` while single tokens are.
    """

    bounded = True
    fixed_buffers = True

    def __init__(self, owner: LongContextMethod, n_first: int, n_last: int) -> None:
        self.n_first, self.n_last = n_first, n_last
        super().__init__(owner)
        self.layout = type(self).__name__, n_first, n_last

    def reset(self) -> None:
        """Forget everything that was read."""
        super().reset()
        self.ring: Ring | None = None
        # columns of hidden tokens before the sinks that were dropped; -1: none
        self.skipped_BN: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Learn the first keys' dtype, device and shape."""
        super().lazy_initialization(key_states, value_states)
        self.column = self.pos

    @classmethod
    def before_forward(cls, layers: Sequence[SinkWindowLayer], n_new: int | None, learns: Callable[[], bool]) -> None:
        """Write single tokens into rings, where nothing is learned from them; whole chunks in order."""
        super().before_forward(layers, n_new, learns)
        if n_new == 1 and not learns():
            roll(layers)
        else:
            for layer in layers:
                layer.to_order()

    def push(self, pos_BL: Tensor, padded: bool, once: Apply | None = None) -> None:
        """Take the positions of the tokens that the next `update` brings, -1 for padding."""
        super().push(pos_BL, padded, once)
        if self.ring is not None and pos_BL.shape[1] == 1:
            self.ring.begin(pos_BL.to(self.ring.pos_BN.device))

    def close(self) -> None:
        """End a forward, also one that failed."""
        super().close()
        if self.ring is not None:
            self.ring.end()

    def keep(self, new: KeyValues) -> KeyValues:
        """Store what later tokens need of `new` and return what the new tokens may see."""
        if self.ring is not None and len(new) == 1:
            self.ring.write(self.slots.k, self.slots.v, new.k, new.v)
            return self._readable(self.ring)
        self.to_order()
        new = self._with_columns(new)
        readable, sinks = self.slots.then(new, self.once), self.sinks
        if sinks is None or self.padded or not self.has_all_sinks:
            candidates = new if sinks is None else sinks.then(new)
            sinks = candidates.first(self.n_first, self.padded).own()
        self._keep_last(readable, sinks, self.evicted_B)
        return readable

    def _with_columns(self, new: KeyValues) -> KeyValues:
        """New tokens that say where in the text they are read."""
        if new.column is not None:
            return new
        return replace(new, column=self.once(_columns, new.pos, self.seen))

    def _readable(self, ring: Ring) -> KeyValues:
        """What a token sees in the ring, which it is in."""
        k, v, n = self.slots.k, self.slots.v, ring.readable
        return KeyValues(k[:, :, :n], v[:, :, :n], ring.pos_BN[:, :n])

    @property
    def has_all_sinks(self) -> bool:
        """Are all the first tokens there?"""
        return self.sinks is not None and len(self.sinks) >= self.n_first

    def _keep_last(self, slots: KeyValues, sinks: KeyValues | None, evicted_B: Tensor | None) -> None:
        """Keep the last `n_last` of `slots`, in order, and the sinks; remember the highest position that was dropped.

        All is made before any of it is kept: a layer that finds no memory for it is as it was.
        """
        kept, skipped_BN = slots.last(self.n_last, self.padded, self.once), self.skipped_BN
        if len(kept) < len(slots):
            evicted_B = self.once(_highest_dropped, slots.pos, kept.pos, evicted_B)
            if self.masked and sinks is not None and len(sinks):
                skipped_BN = _skipped(slots, kept, sinks, skipped_BN)
        self.store(kept)
        self.sinks, self.evicted_B, self.skipped_BN = sinks, evicted_B, skipped_BN

    def to_ring(self, ring: Ring) -> None:
        """Continue in the columns of `ring`, whose positions are those of the slots (see `roll`)."""
        kept = self.slots
        self.store(KeyValues(ring.buffer(kept.k), ring.buffer(kept.v), ring.pos_BN, ring.column_BN))
        self.ring = ring
        if self.sinks is not None and is_sealed(self.sinks.k):  # rows are chosen in place
            self.sinks = self.sinks.own()
            self.skipped_BN = None if self.skipped_BN is None else self.skipped_BN.clone()

    def to_order(self) -> None:
        """Go back from a ring to slots in order."""
        if self.ring is None:
            return
        self._keep_last(self.editable_view(), self.sinks, self.once(torch.clone, self.ring.evicted_B))
        self.ring = None

    def editable_view(self) -> KeyValues:
        """The last tokens as they are kept, in order."""
        kept = self.slots
        return kept if self.ring is None else kept.gather(self.once(Ring.in_order, self.ring), self.once)

    def hold(self, text: KeyValues) -> None:
        """Keep the sinks and the last tokens of `text`, and nothing else."""
        text = replace(text, column=text.pos)
        self._keep_last(text, text.first(self.n_first, False).own(), None)
        self.seen, self.ring = len(text), None

    @property
    def in_place(self) -> bool:
        """Are rows chosen in place, as in a ring that can be written to?"""
        return self.ring is not None and not self.ring.sealed

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Choose the batch's rows again, for beam search; in a ring, in place."""
        if self.ring is None or not self.in_place:
            super().reorder_cache(beam_idx)
            return
        sinks = self.sinks
        held = (self.keys, self.values, *(() if sinks is None else (sinks.k, sinks.v, sinks.pos, sinks.column)))
        self.ring.reorder(self, (tensor for tensor in (*held, self.skipped_BN) if tensor is not None), beam_idx)
        if self.read_B is not None:  # of all layers, so not in place
            self.read_B = self.read_B.index_select(0, beam_idx.to(self.read_B.device))

    def map_rows(self, f: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor that has a row for each of the batch by `f` of it."""
        self.to_order()
        super().map_rows(f)
        self.skipped_BN = None if self.skipped_BN is None else f(self.skipped_BN)

    def far(self) -> int | None:
        """A position from which on the sinks are out of the window, and twice as far as it is wide."""
        if self.seen and not self.has_all_sinks:
            return None
        first = int(self.sinks.pos.max()) + 1 if self.sinks is not None and len(self.sinks) else self.n_first
        return first + 2 * (self.n_last + 1)

    def move_back(self, delta: int) -> None:
        """Lower the positions of the last tokens by `delta`. The sinks stay where they are."""
        if self.is_initialized:
            self.to_order()
            slots = self.slots
            pos = torch.where(slots.pos < 0, slots.pos, slots.pos - delta)
            self.store(replace(slots, pos=torch.where(pos < -1, pos + delta, pos)))
            if self.evicted_B is not None:
                self.evicted_B = (self.evicted_B - delta).clamp(min=-1)

    def show(self, mask_BT: Tensor) -> None:
        """Hide and show stored tokens as an attention mask says; ValueError where it shows dropped ones again."""
        if self._shows_skipped(mask_BT):
            raise ValueError(
                f"attention_mask shows tokens again that it had hidden: {self.owner.name} has dropped them meanwhile, "
                f"and they would be first tokens. Read the text again with a new cache."
            )
        self.to_order()
        super().show(mask_BT)
        if self.sinks is None:
            return
        # where nothing was dropped, all that was read is there to choose from
        chosen = self.slots.first(self.n_first, True).own()
        if self.evicted_B is None or len(chosen) != len(self.sinks):
            self.sinks = chosen if self.evicted_B is None else self.sinks.shown(mask_BT)
            return
        held, whole_B = self.sinks.shown(mask_BT), self.evicted_B < 0
        wide = whole_B[:, None, None, None]
        assert chosen.column is not None
        assert held.column is not None
        column = torch.where(whole_B[:, None], chosen.column, held.column)
        pos = torch.where(whole_B[:, None], chosen.pos, held.pos)
        self.sinks = KeyValues(torch.where(wide, chosen.k, held.k), torch.where(wide, chosen.v, held.v), pos, column)

    def show_all(self) -> None:
        """Show hidden tokens again. But a recorded step is given no mask, and sees the same ones as before."""
        if self.ring is None or not self.ring.recorded:
            super().show_all()

    def shows(self, mask_BT: Tensor) -> Tensor:
        """Whether a mask shows exactly the tokens that are shown now."""
        skipped = self._shows_skipped(mask_BT)
        return super().shows(mask_BT) if skipped is False else super().shows(mask_BT) & ~skipped

    def _shows_skipped(self, mask_BT: Tensor) -> Any:
        if self.skipped_BN is None:
            return False
        mask = mask_BT.to(self.skipped_BN.device)
        return (mask.gather(1, self.skipped_BN.clamp(min=0)) & (self.skipped_BN >= 0)).any()

    def misses(self, first_B: Tensor) -> Tensor:
        """(B,): have rows that continue at these positions lost tokens that they would see?"""
        evicted = self.evicted_B if self.ring is None else self.ring.evicted_B
        if evicted is None:
            return super().misses(first_B)
        evicted = evicted.to(first_B.device)
        missing = evicted > first_B - (self.n_last + 1)
        missing &= (first_B > 0) & (self.n_last > 0)  # else a token sees none before its own in the window
        if self.sinks is not None:  # the tokens that come after a sink that is hidden are gone
            missing |= (self.sinks.pos < -1).any(1).to(first_B.device)
        return missing & (evicted >= 0)


def _columns(pos_BL: Tensor, start: int) -> Tensor:
    """Where in the text tokens of these positions are read, (B, L)."""
    return torch.arange(start, start + pos_BL.shape[1], device=pos_BL.device).expand_as(pos_BL)


def _highest_dropped(pos_BS: Tensor, kept_BN: Tensor, before_B: Tensor | None) -> Tensor:
    """The highest position that is dropped where some are kept, or was before, (B,); -1: none."""
    first_kept = torch.where(kept_BN < 0, FAR, kept_BN).amin(1, keepdim=True) if kept_BN.shape[1] else FAR
    dropped_B = torch.where(pos_BS < first_kept, pos_BS, -1).amax(1)
    return dropped_B if before_B is None else torch.maximum(before_B, dropped_B)


def _skipped(slots: KeyValues, kept: KeyValues, sinks: KeyValues, earlier_BN: Tensor | None) -> Tensor | None:
    """The columns of dropped hidden tokens that would be sinks if a mask showed them again, and earlier ones."""
    assert slots.column is not None
    first: Any = FAR
    if len(kept):
        assert kept.column is not None
        first = torch.where(kept.pos == -1, FAR, kept.column).amin(1, keepdim=True)
    before = (slots.pos < -1) & (-2 - slots.pos < sinks.pos.amax(1, keepdim=True)) & (slots.column < first)
    count = int(before.sum(1).max())
    if not count:
        return earlier_BN
    new = torch.where(before, slots.column, -1).topk(min(count, len(slots)), dim=1).values
    return new if earlier_BN is None else torch.cat([earlier_BN, new], 1)
