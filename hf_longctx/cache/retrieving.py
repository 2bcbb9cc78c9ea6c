"""A cache layer that keeps the first tokens and a window to attend to, and every token to look up."""

# B batch, L new tokens, T tokens read so far
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..method import LongContextMethod
from .sink_window import SinkWindowLayer
from .slots import KeyValues
from .store import Store, StoreRow


class RetrievingLayer(SinkWindowLayer):
    """A `SinkWindowLayer` whose tokens are all kept in `everything` too, from when they come: nothing moves later.

    Its size grows with the text, by a token's keys, values and codes; what it returns to attention does not.

    Args:
        owner: The method that writes this layer.
        n_first: The first tokens, which stay visible.
        n_last: The last ones, which a query sees besides its own.
        centred_by: As in `StoreRow`: the first keys that codes are centred by; 0: there are no codes.
    """

    bounded = False
    fixed_buffers = False  # it decodes without a CUDA graph, since look-ups read more as the text grows

    def __init__(self, owner: LongContextMethod, n_first: int, n_last: int, centred_by: int) -> None:
        self.centred_by = centred_by
        super().__init__(owner, n_first, n_last)

    def reset(self) -> None:
        """Forget everything that was read."""
        super().reset()
        self.everything: Store | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Learn the first keys' dtype, device and shape."""
        super().lazy_initialization(key_states, value_states)
        self.everything = Store([StoreRow(self.centred_by) for _ in range(len(key_states))])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take L new un-rotated keys; return the window and them. ValueError where attention changes what it gets."""
        if self.joined:
            raise ValueError(
                f"its attention makes its keys and values of what the cache returns (latent attention, MLA, for one), "
                f"and {self.owner.name} looks up what the cache holds. Use LMInfinite(top_k=5), which looks up what "
                f"attention has made."
            )
        return super().update(key_states, value_states, *args, **kwargs)

    def keep(self, new: KeyValues) -> KeyValues:
        """Store `new` in the window and in `everything`; return what attention sees without looking up."""
        assert self.everything is not None
        columns = torch.arange(self.seen, self.seen + len(new), device=new.pos.device)
        self.everything.append(replace(new, column=columns.expand_as(new.pos)), self.padded)
        return super().keep(new)

    def hold(self, text: KeyValues) -> None:
        """Keep the tokens of `text`, and nothing else."""
        super().hold(text)
        self.everything = Store([StoreRow(self.centred_by) for _ in range(len(text.pos))])
        self.everything.append(replace(text, column=text.pos), False)

    def map_rows(self, f: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor that has a row for each of the batch by `f` of it."""
        super().map_rows(f)
        if self.everything is not None:
            self.everything.select(f(torch.arange(len(self.everything.rows))).tolist())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Choose the batch's rows again, for beam search."""
        in_place = self.ring is not None  # else by `map_rows`
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
