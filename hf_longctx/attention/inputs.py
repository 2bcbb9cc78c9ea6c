"""`AttentionInputs`: what a method sees of one layer in one forward, and the branches and rotations it makes of it."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import layer_type
from ..cache.slots import KeyValues
from ..ops.branch import Branch
from ..ops.masks import Mask
from ..ops.rotation import Rotation
from .state import DecoderState, Step, has_rope

NEAR = 4096  # angles up to here are as good as those a model was trained with


@dataclass
class AttentionInputs:
    """What a method sees of one layer in one forward: un-rotated queries, keys and values, and where they stand.

    `head` are the first tokens where the cache keeps them apart, else None. `regular` and `padded` as in `Branch`.
    """

    module: nn.Module
    decoder: DecoderState
    step: Step
    q_BHLD: Tensor
    k_BGSD: Tensor
    v_BGSD: Tensor
    k_pos_BS: Tensor
    head: KeyValues | None
    padded: bool
    layout: str  # which slots the cache keeps: layers of one layout have the same
    fresh: bool  # keys are exactly the queries' tokens: nothing was cached before
    scale: float

    @property
    def q_pos_BL(self) -> Tensor:
        return self.step.q_pos_BL

    @property
    def regular(self) -> bool:
        return self.step.regular

    def shared(self, keys: str) -> dict[Any, Any]:
        """Where kernels keep what follows from positions alone; one place for each set of keys."""
        shared: dict[Any, Any] = self.memo(("shared", keys), dict)
        return shared

    def first(self, n: int) -> KeyValues:
        """The first n real tokens of every row."""
        if self.head is not None:
            return self.head
        return KeyValues(self.k_BGSD, self.v_BGSD, self.k_pos_BS).first(n, self.padded)

    def memo(self, what: Any, make: Callable[[], Any]) -> Any:
        """`make()`, once for all layers of this kind in this forward."""
        key = (what, layer_type(self.module), has_rope(self.module), self.layout, self.k_BGSD.device)
        if key not in self.step.memo:
            self.step.memo[key] = make()
        return self.step.memo[key]

    def branch(
        self,
        visible: Mask,
        keys: KeyValues | None = None,
        q_rope: Rotation | None = None,
        k_rope: Rotation | None = None,
    ) -> Branch:
        """A branch of these queries: over `keys` as the ropes say, or by default over all keys at true distances."""
        shared = self.shared("all" if keys is None else "some")
        if keys is None:
            q_rope, k_rope = self.true_ropes()
            keys = KeyValues(self.k_BGSD, self.v_BGSD, self.k_pos_BS)
        seen = self.q_pos_BL, keys.pos, visible, q_rope, k_rope, self.regular, self.padded, shared
        return Branch(self.q_BHLD, keys.k, keys.v, *seen)

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
            base = torch.where(self.k_pos_BS < 0, far, self.k_pos_BS).amin(1, keepdim=True)
            if self.fresh:
                # a text that begins near 0 is rotated as the model itself would, bit for bit; asking would cost a sync
                base = base - base % NEAR
            keys = self._rotation((self.k_pos_BS - base).clamp(min=0))
            return (keys if self.fresh else self._rotation((self.q_pos_BL - base).clamp(min=0))), keys

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
