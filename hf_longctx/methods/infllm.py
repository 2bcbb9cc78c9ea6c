"""InfLLM: a window, and blocks of tokens that are looked up by a description (Xiao et al. 2024)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import nn

from ..attention.blocks import choose_blocks
from ..attention.found import found_branch, reading_at
from ..attention.inputs import AttentionInputs
from ..attention.lookup_settings import check_lookup, half_of
from ..attention.method import AttentionMethod, halved
from ..cache import FullLayer, UnrotatedLayer
from ..method import Footprint
from ..ops.branch import Branch
from ..rope.parameters import readable_length
from .lm_infinite import window_and_first

logger = logging.getLogger("hf_longctx")
CHOICES = {"by": ("mean", "bounds"), "per": ("group", "head")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfLLM(AttentionMethod):
    """InfLLM (Xiao et al. 2024): what has left the window is kept in blocks, and the best of them are looked up.

    Every token sees the first `n_global` tokens and the last `n_local`, as under `LMInfinite`; in between, every group
    of heads looks up `top_k` blocks of `block_size` tokens by one description of each block.

    Use when: InfLLM, or with `by="bounds"` Quest's choice of blocks, is to be compared with.

    Cannot: find single facts reliably: a description of a block says little about one of its tokens. `CodeLookup` and
    `LMInfinite(top_k=5)` look tokens up one by one.

    Costs: all keys are kept, their descriptions are computed in every forward, and up to `(top_k + 1) * block_size`
    keys are gathered for each query and head; decoding does without a CUDA graph.

    Differs from the paper: a query chooses for itself, from blocks whose tokens are all beyond its window (the paper:
    512 queries together); a group of heads chooses, by the best of its scores (all heads, by the sum); a block's
    representative is the mean of all its keys (of the four that were attended to most); what is found is read at
    `read_at`, and the first tokens at `n_local` (all at `n_local - 1`); every layer looks up, and keys stay on the
    device. So outputs do not depend on how a text is cut.

    Args:
        n_global: Tokens at the start that stay visible, at least 0.
        n_local: Tokens of the window, the query's own included, at least `block_size`. None: half of the model's
            trained length (`config.max_position_embeddings`), as the authors set it for Llama 3 and Vicuna.
        block_size: Tokens of a block, a power of two.
        top_k: Blocks that a query looks up, at least 1, besides what has left its window of the block at the edge.
        by: "mean": a block is described by the mean of its keys; "bounds": by the least and the largest value of each
            channel (Quest, Tang et al. 2024).
        per: "group": the heads that share keys look up the same blocks; "head": each its own.
        read_at: The distance at which blocks are read, from 1 to `n_local`. None: half of `n_local`. At the end of the
            trained length a model hardly reads.
    """

    name: ClassVar[str] = "infllm"
    summary: ClassVar[str] = "first tokens + a window + blocks of tokens found by the mean or the bounds of their keys"
    paper: ClassVar[str] = "https://arxiv.org/abs/2402.04617"

    n_global: int = 128
    n_local: int | None = None
    block_size: int = 128
    top_k: int = 16
    by: str = "mean"
    per: str = "group"
    read_at: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_lookup(self, CHOICES)
        if self.block_size < 1 or self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size={self.block_size}: expected a power of two, such as 128, the paper's.")
        if self.n_local is not None and self.block_size > self.n_local:
            raise ValueError(
                f"block_size={self.block_size}: expected at most n_local={self.n_local}, the tokens of the window. "
                f"Choose smaller blocks or a larger window."
            )

    def resolve(self, config: Any) -> InfLLM:
        """Fill in `n_local` and `read_at`."""
        readable, trained = readable_length(config), getattr(config, "max_position_embeddings", None)
        n_local = self.n_local
        if n_local is None:
            if trained is None:
                raise ValueError(
                    "n_local=None: the config names no trained length (max_position_embeddings). Set n_local."
                )
            n_local = max(int(trained) // 2, 1)
        if readable is not None and self.n_global + n_local + self._found > readable:
            logger.warning(
                "n_global=%d, n_local=%d and %d blocks of block_size=%d are more tokens at once than the %d that the "
                "config names.", self.n_global, n_local, self.top_k + 1, self.block_size, readable,
            )  # fmt: skip
        return dataclasses.replace(self, n_local=n_local, read_at=self.read_at or half_of(n_local))

    @property
    def looks_up(self) -> bool:
        """Always."""
        return True

    @property
    def _found(self) -> int:
        """Tokens that a query looks up at most."""
        return (self.top_k + 1) * self.block_size - 1

    def footprint(self, module: nn.Module) -> Footprint:
        """All keys; a query sees its window and looks up blocks."""
        return Footprint(span=self.n_local, looked_up=self._found)

    def sees(self) -> str:
        """The first tokens, the window, and what is looked up."""
        whose = "group of heads" if self.per == "group" else "head"
        return (
            f"the first {self.n_global} and the last {self.n_local:,} tokens, and looks up {self.top_k} blocks of "
            f"{self.block_size} others per {whose}, wherever they are"
        )

    def smaller(self) -> Iterator[tuple[str, InfLLM]]:
        """Smaller windows, of at least a block."""
        for window in halved(self.n_local):
            if window >= self.block_size:
                yield f"n_local={window}", dataclasses.replace(self, n_local=window, read_at=half_of(window))

    @classmethod
    def proposals(cls, tokens: int, trained: int | None) -> list[InfLLM]:
        """None: other methods find more with fewer tokens."""
        return []

    def cache_layer(self, module: nn.Module) -> UnrotatedLayer:
        """All keys and values."""
        return FullLayer(self)

    def branches(self, inputs: AttentionInputs) -> list[Branch]:
        """The window, the first tokens beyond it, and the tokens of the blocks found in between."""
        assert self.n_local is not None
        assert self.read_at is not None
        window, first = window_and_first(inputs, self.n_global, self.n_local)
        if not inputs.looking:
            return [window, first]
        q = reading_at(inputs, self.read_at)
        table = choose_blocks(
            q, inputs.q_pos_BL, inputs.keys, k=self.top_k, size=self.block_size, near=self.n_local,
            after_B=inputs.after(self.n_global), by=self.by, per=self.per,
        )  # fmt: skip
        return [window, first, found_branch(inputs, q, table)]
