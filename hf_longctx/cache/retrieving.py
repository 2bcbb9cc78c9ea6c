"""A cache layer that keeps the first tokens and a window to attend to, and every token to look up."""

# B batch, L new tokens, T tokens read so far
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..method import LongContextMethod
from ..ops.available import TRITON
from . import addresses
from .host_room import check_first, make_room
from .sink_window import SinkWindowLayer
from .slots import KeyValues
from .store import Store
from .store_row import Places, StoreRow, made_places


class RetrievingLayer(SinkWindowLayer):
    """A `SinkWindowLayer` whose tokens are all kept in `everything` too, from when they come: nothing moves later.

    Its size grows with the text, by a token's keys, values and codes; what it returns to attention does not.

    Args:
        owner: The method that writes this layer.
        n_first: The first tokens, which stay visible.
        n_last: The last ones, which a query sees besides its own.
        centred_by: As in `StoreRow`: the first keys that codes are centred by; 0: there are no codes.
        on_host: How many layers, from this one to the last, keep what is looked up in host memory; 0: none does.
    """

    bounded = False

    def __init__(self, owner: LongContextMethod, n_first: int, n_last: int, centred_by: int, on_host: int = 0) -> None:
        self.centred_by, self.on_host = centred_by, on_host
        super().__init__(owner, n_first, n_last)

    @property
    def fixed_buffers(self) -> bool:  # type: ignore[override]  # it follows from where the keys are
        """On a GPU; in a ring, while its tokens are kept by counters on the device."""
        if not TRITON or (self.is_initialized and self.device.type not in addresses.DEVICES):
            return False
        return self.ring is None or (self.everything is not None and self.everything.steps)

    def reset(self) -> None:
        """Forget everything that was read."""
        super().reset()
        self.everything: Store | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Learn the first keys' dtype, device and shape. ValueError where they do not fit into host memory."""
        if self.on_host:
            check_first(key_states, value_states, self.on_host)
        super().lazy_initialization(key_states, value_states)
        self.everything = self._store(len(key_states))

    def _store(self, rows: int) -> Store:
        """An empty one. Layers that are filled in one forward share where their tokens stand."""
        paged, on_host = self.device.type in addresses.DEVICES, bool(self.on_host)
        places = [self.once(_places, row, paged, self.device) for row in range(rows)]
        return Store([StoreRow(self.centred_by, paged=paged, on_host=on_host, places=one) for one in places])

    @classmethod
    def before_forward(cls, layers: Sequence[Any], n_new: int | None, learns: Callable[[], bool]) -> None:
        """Make room before anything is changed: ValueError where there is none. Then as in a `SinkWindowLayer`."""
        if n_new is not None:
            held = [layer for layer in layers if layer.everything is not None]
            if any(layer.padded or layer.device.type not in addresses.DEVICES for layer in held) or learns():
                # rows may bring fewer tokens, pieces hold what is there, or are made again
                held = [layer for layer in held if layer.on_host]
            make_room([layer.everything for layer in held], n_new)
        super().before_forward(layers, n_new, learns)
        for layer in layers:
            if layer.ring is not None:
                layer.everything.begin_steps()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take L new un-rotated keys; return the window and them. ValueError where attention changes what it gets."""
        if self.joined:
            raise ValueError(
                f"its attention makes its keys and values of what the cache returns (latent attention, MLA, for one), "
                f"and {self.owner.name} looks up what the cache holds. Use LMInfinite(top_k=5) with its keys on the "
                f"GPU, which looks up what attention has made."
            )
        return super().update(key_states, value_states, *args, **kwargs)

    def keep(self, new: KeyValues) -> KeyValues:
        """Store `new` in the window and in `everything`; return what attention sees without looking up."""
        assert self.everything is not None
        if self.ring is not None and len(new) == 1 and self.everything.steps:
            self.everything.step(new, self.ring, self.slots)
            return self._readable(self.ring)
        new = self._with_columns(new)
        count = self.everything.write(new, self.padded, self.once)
        readable = super().keep(new)
        count()  # after all that may fail
        return readable

    def hold(self, text: KeyValues) -> None:
        """Keep the tokens of `text`, and nothing else."""
        super().hold(text)
        self.everything = self._store(len(text.pos))
        self.everything.append(replace(text, column=text.pos), False)

    def map_rows(self, f: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor that has a row for each of the batch by `f` of it."""
        super().map_rows(f)
        if self.everything is not None:
            self.everything.select(f(torch.arange(len(self.everything.rows))).tolist())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Choose the batch's rows again, for beam search."""
        in_place = self.in_place  # else by `map_rows`
        super().reorder_cache(beam_idx)
        if in_place and self.everything is not None:
            self.everything.select(beam_idx.tolist())

    def show(self, mask_BT: Tensor) -> None:
        """Hide and show stored tokens as an attention mask says; ValueError where it shows dropped ones again."""
        super().show(mask_BT)
        if self.everything is not None:
            self.everything.show(mask_BT)

    def shows(self, mask_BT: Tensor) -> Tensor:
        """Whether a mask shows exactly the tokens that are shown now, those beyond the window too."""
        shown = super().shows(mask_BT)
        return shown if self.everything is None else shown & self.everything.shows(mask_BT)

    def far(self) -> None:
        """Its tokens cannot be moved: those that are looked up keep their positions."""
        return None

    def nbytes(self) -> int:
        """Bytes of keys, values, codes, positions and columns stored."""
        return super().nbytes() + (0 if self.everything is None else self.everything.nbytes())


def _places(row: int, paged: bool, device: torch.device) -> Places:
    """Those of a row that layers on one device share."""
    return made_places(paged)
