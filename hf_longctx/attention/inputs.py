"""`AttentionInputs`: what a method sees of one layer in one forward, and the branches and rotations it makes of it."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import layer_type
from ..cache.slots import KeyValues
from ..ops.branch import Branch
from ..ops.masks import Mask
from ..ops.positions import Positions
from ..ops.rotation import Rotation
from .state import DecoderState, Step, has_rope

NEAR = 4096  # angles up to here are as good as those a model was trained with


@dataclass
class AttentionInputs:
    """What a method sees of one layer in one forward: un-rotated queries, keys and values, and where they stand.

    Attributes:
        module: The attention layer.
        decoder: What it shares with the decoder's other layers.
        step: The forward.
        q_BHLD: Queries.
        keys: All keys and values that can be read with their positions, the queries' own tokens included.
        sinks: The first tokens where the cache keeps them apart, else None.
        padded: As in `Positions`.
        layout: Which slots the cache keeps: layers of one layout have the same.
        nothing_cached: `keys` are exactly the queries' tokens.
        scale: Multiplies q k.
    """

    module: nn.Module
    decoder: DecoderState
    step: Step
    q_BHLD: Tensor
    keys: KeyValues
    sinks: KeyValues | None
    padded: bool
    layout: Hashable
    nothing_cached: bool
    scale: float
    _first: dict[int, KeyValues] = field(default_factory=dict, init=False)

    @property
    def q_pos_BL(self) -> Tensor:
        """The queries' true positions."""
        return self.step.q_pos_BL

    def first(self, n: int) -> KeyValues:
        """The first n real tokens of every row."""
        if n not in self._first:
            self._first[n] = self.keys.first(n, self.padded) if self.sinks is None else self.sinks
        return self._first[n]

    def memo(self, what: Any, make: Callable[[], Any]) -> Any:
        """`make()`, once for all layers of this kind in this forward."""
        key = (what, layer_type(self.module), has_rope(self.module), self.layout, self.q_BHLD.device)
        if key not in self.step.memo:
            self.step.memo[key] = make()
        return self.step.memo[key]

    def branch(
        self,
        mask: Mask,
        keys: KeyValues,
        q_rope: Rotation | None,
        k_rope: Rotation | None,
        q_BHLD: Tensor | None = None,
    ) -> Branch:
        """A branch of these queries.

        Args:
            mask: Which pairs are in it.
            keys: Over which keys: `self.keys` is all of them.
            q_rope: Where queries are read; None: they are right already.
            k_rope: Where keys are read.
            q_BHLD: The queries, where they have been rotated before; None: this layer's.
        """
        everything = keys is self.keys
        positions = Positions(
            self.q_pos_BL,
            keys.pos,
            same_rows=everything and self.nothing_cached,
            consecutive=everything and self.step.consecutive,
            padded=self.padded,
            memo=self._kernel_memo(keys),
        )
        q = self.q_BHLD if q_BHLD is None else q_BHLD
        return Branch(q, keys.k, keys.v, positions, mask, q_rope, k_rope)

    def _kernel_memo(self, keys: KeyValues) -> dict[Any, Any] | None:
        """Where kernels keep what follows from positions alone: for keys that stand at the same ones in all layers."""
        which = "all" if keys is self.keys else next((n for n, first in self._first.items() if first is keys), None)
        memo: dict[Any, Any] | None = None if which is None else self.memo(("kernels", which), dict)
        return memo

    def rotation(self, pos_BL: Tensor) -> Rotation | None:
        """The rotation to these positions; None on layers without position embeddings (NoPE)."""
        return self.decoder.read_rotation(self.module, self.q_BHLD, pos_BL) if has_rope(self.module) else None

    def true_ropes(self) -> tuple[Rotation | None, Rotation | None]:
        """Rotations of queries and keys at their true distances.

        Positions count from the earliest key kept, in the first forward from near it, so angles stay small however long
        the stream is and wherever it starts.
        """
        if not has_rope(self.module):
            return None, None

        def make() -> tuple[Rotation, Rotation]:
            far = torch.iinfo(torch.long).max
            base = torch.where(self.keys.pos < 0, far, self.keys.pos).amin(1, keepdim=True)
            if self.nothing_cached:
                # a text that begins near 0 is rotated as the model itself would, bit for bit; asking would cost a sync
                base = base - base % NEAR
            keys = self._rotation((self.keys.pos - base).clamp(min=0))
            return (keys if self.nothing_cached else self._rotation((self.q_pos_BL - base).clamp(min=0))), keys

        ropes: tuple[Rotation, Rotation] = self.memo("true", make)
        return ropes

    def _rotation(self, pos_BL: Tensor) -> Rotation:
        # in the precision of the model's own cosines, which autocast leaves alone
        return self.decoder.read_rotation(self.module, self.step.embeddings[0], pos_BL)

    def relative(self, offset: int) -> Rotation | None:
        """A rotation for *one side alone*: keys moved by -d, or queries by d, meet the other side (left as it is) at d.

        The smaller side is the one to move. A scaled rotary embedding (yarn) multiplies queries and keys each by its
        factor; the side that is moved gets both.
        """
        if not has_rope(self.module):
            return None

        def make() -> Rotation | None:
            there = torch.full((1, 1), offset, dtype=torch.long, device=self.q_BHLD.device)
            moved, still = self.rotation(there), self.rotation(torch.zeros_like(there))
            assert moved is not None
            assert still is not None
            return Rotation(moved.cos * still.cos, moved.sin * still.cos, moved.apply_rotary)

        rotation: Rotation | None = self.memo(("relative", offset), make)
        return rotation
