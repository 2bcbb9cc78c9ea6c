"""`AttentionInputs`: what a method sees of one layer in one forward, and the branches and rotations it makes of it."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..cache.slots import KeyValues
from ..cache.store import Store
from ..ops.attend import attend, attended
from ..ops.branch import Branch
from ..ops.kernels.turns import turns
from ..ops.masks import Mask
from ..ops.positions import Positions
from ..ops.rotation import Rotation
from .state import DecoderState, Step
from .watch import Found

NEAR = 4096  # angles up to here are as good as those a model was trained with
TABLE = 32_768  # distances of a window whose rotations are kept, however few keys there are


@dataclass
class AttentionInputs:
    """What a method sees of one layer in one forward: un-rotated queries, keys and values, and where they stand.

    Attributes:
        module: The attention layer.
        kind: What its config calls it: `full_attention`, for one.
        decoder: What it shares with the decoder's other layers.
        step: The forward.
        found: What the layer does.
        q_BHLD: Queries.
        keys: All keys and values that can be read with their positions, the queries' own tokens included.
        sinks: The first tokens where the cache keeps them apart, else None.
        padded: As in `Positions`.
        layout: Which slots the cache keeps: layers of one layout have the same.
        nothing_cached: `keys` are exactly the queries' tokens.
        in_step: `keys` were read with the queries, by this layer or by another one.
        scale: Multiplies q k.
        everything: All tokens of the text to look up in, where the cache keeps them apart from `keys`, else None.
        softcap: Scores s are softcap tanh(s / softcap); None: they are s.
        sink_H: A logit for each head in the softmax's denominator only; None: there is none.
    """

    module: nn.Module
    kind: str
    decoder: DecoderState
    step: Step
    found: Found
    q_BHLD: Tensor
    keys: KeyValues
    sinks: KeyValues | None
    padded: bool
    layout: Hashable
    nothing_cached: bool
    in_step: bool
    scale: float
    everything: Store | None = None
    softcap: float | None = None
    sink_H: Tensor | None = None
    _first: dict[int, KeyValues] = field(default_factory=dict, init=False)

    @property
    def q_pos_BL(self) -> Tensor:
        """The queries' true positions."""
        return self.step.q_pos_BL

    @property
    def looking(self) -> int:
        """How many of the queries look tokens up: the last ones."""
        queries, begin = self.q_BHLD.shape[2], self.decoder.look_up_from
        return queries if begin is None else min(max(self.step.ends - begin, 0), queries)

    def before(self, n: int) -> AttentionInputs:
        """Without the last n queries and their keys, which no other query sees."""
        keys = KeyValues(self.keys.k[:, :, :-n], self.keys.v[:, :, :-n], self.keys.pos[:, :-n])
        return replace(self, q_BHLD=self.q_BHLD[:, :, :-n], keys=keys, step=self._part_of_step(slice(-n), n))

    def last(self, n: int) -> AttentionInputs:
        """The last n queries alone, and all keys."""
        step = self._part_of_step(slice(-n, None), 0)
        return replace(self, q_BHLD=self.q_BHLD[:, :, -n:], step=step, nothing_cached=False)

    def _part_of_step(self, queries: slice, fewer: int) -> Step:
        step, key = self.step, ("part", queries.start, queries.stop)
        if key not in step.memo:  # one for all layers, for what they keep in it
            pos, q_pos = (x[:, queries] for x in (step.pos_BL, step.q_pos_BL))
            step.memo[key] = replace(step, pos_BL=pos, q_pos_BL=q_pos, ends=step.ends - fewer, memo={})
        part: Step = step.memo[key]
        return part

    def first(self, n: int) -> KeyValues:
        """The first n real tokens of every row."""
        if n not in self._first:
            self._first[n] = self.keys.first(n, self.padded) if self.sinks is None else self.sinks
        return self._first[n]

    def after(self, n: int) -> Tensor:
        """The last position of the first n real tokens of every row, (B,); -1: it has none."""
        last_B: Tensor = self.memo(("after", n), lambda: self.first(n).latest())
        return last_B

    def attend(self, branches: list[Branch], kernel: str = "auto") -> Tensor:
        """The softmax over the union of branches of these queries, as the model has it, (B, L, H, D)."""
        softmax = partial(attend, scale=self.scale, softcap=self.softcap, sink_H=self.sink_H)
        return softmax(branches, kernel=kernel, strict=False)

    def attended(self, branch: Branch) -> Branch:
        """A branch of these queries whose log-sum-exp is asked for before all are attended to; see `ops.attended`."""
        settings: dict[str, Any] = {"scale": self.scale, "kernel": self.decoder.kernel, "strict": False}
        return attended(branch, **settings, softcap=self.softcap)

    def memo(self, what: Any, make: Callable[[], Any]) -> Any:
        """`make()`, once for all layers of this kind in this forward."""
        key = (what, self.kind, self.found.layout, self.layout, self.q_BHLD.device)
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
            consecutive=everything and self.in_step and self.step.consecutive,
            padded=self.padded,
            memo=self._kernel_memo(keys),
        )
        q = self.q_BHLD if q_BHLD is None else q_BHLD
        return Branch(q, keys.k, keys.v, positions, mask, q_rope, k_rope, self.decoder.method.bias(self.module))

    def _kernel_memo(self, keys: KeyValues) -> dict[Any, Any] | None:
        """Where kernels keep what follows from positions alone: for keys that stand at the same ones in all layers."""
        which = "all" if keys is self.keys else next((n for n, first in self._first.items() if first is keys), None)
        memo: dict[Any, Any] | None = None if which is None else self.memo(("kernels", which), dict)
        return memo

    def rotation(self, pos_BL: Tensor) -> Rotation | None:
        """The rotation to these positions; None on layers without position embeddings (NoPE)."""
        layout = self.found.layout
        return None if layout is None else self.decoder.read_rotation(self.module, layout, self.q_BHLD, pos_BL)

    def true_ropes(self) -> tuple[Rotation | None, Rotation | None]:
        """Rotations of queries and keys at their true distances.

        Positions count from the earliest key kept, in the first forward from near it, so angles stay small however long
        the stream is and wherever it starts.
        """
        layout = self.found.layout
        if layout is None:
            return None, None

        def make() -> tuple[Rotation, Rotation]:
            far = torch.iinfo(torch.long).max
            base = torch.where(self.keys.pos < 0, far, self.keys.pos).amin(1, keepdim=True)
            if self.nothing_cached:
                # a text that begins near 0 is rotated as the model itself would, bit for bit; asking would cost a sync
                base = base - base % NEAR
            read = partial(self.decoder.read_rotation, self.module, layout, self.step.like)
            keys = read((self.keys.pos - base).clamp(min=0))
            return (keys if self.nothing_cached else read((self.q_pos_BL - base).clamp(min=0))), keys

        ropes: tuple[Rotation, Rotation] = self.memo("true", make)
        return ropes

    def window_ropes(self, size: int) -> tuple[Rotation | None, Rotation | None]:
        """Rotations of queries and keys at their true distances below `size`; farther keys are not to be read.

        For one query a row its keys alone are moved, each by its distance, of a table that is made once.
        """
        layout = self.found.layout
        single = self.q_BHLD.shape[2] == 1 and not self.nothing_cached and not torch.compiler.is_compiling()
        # a window may be far larger than any text, and a table of it than any memory
        fits = size <= max(TABLE, 2 * self.keys.pos.shape[1])
        if layout is None or not single or not fits:
            return self.true_ropes()

        def make() -> Rotation:
            device = self.q_BHLD.device
            below = lambda: -torch.arange(size, device=device)[None]  # noqa: E731
            table = self._moved(("below", size), below, self.step.like)
            cos, sin = turns(table.cos[0], table.sin[0], self.q_pos_BL, self.keys.pos)
            return Rotation(cos, sin, table.layout)

        return None, self.memo(("below", size), make)

    def relative(self, offset: int) -> Rotation | None:
        """A rotation for *one side alone*: keys moved by -d, or queries by d, meet the other side (left as it is) at d.

        The smaller side is the one to move. A scaled rotary embedding (yarn) multiplies queries and keys each by its
        factor; the side that is moved gets both.
        """
        if self.found.layout is None:
            return None

        def make() -> Rotation:
            there = lambda: torch.full((1, 1), offset, dtype=torch.long, device=self.q_BHLD.device)  # noqa: E731
            return self._moved(("by", offset), there, self.q_BHLD)

        rotation: Rotation = self.memo(("relative", offset), make)
        return rotation

    def _moved(self, what: Hashable, offsets: Callable[[], Tensor], like: Tensor) -> Rotation:
        """The rotation by offsets (1, N), with the factors of both sides; the same in every forward."""
        layout = self.found.layout
        assert layout is not None

        def make() -> Rotation:
            there = offsets()
            read = partial(self.decoder.read_rotation, self.module, layout, like)
            moved, still = read(there), read(torch.zeros_like(there[:, :1]))
            return Rotation(moved.cos * still.cos, moved.sin * still.cos, layout)

        key = what, self.kind, layout, like.dtype, like.device
        return self.decoder.constants.get(self.decoder.rotary, key, make)
