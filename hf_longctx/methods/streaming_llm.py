"""StreamingLLM: attention sinks and a rolling window, positions inside the cache (Xiao et al. 2023, 2309.17453)."""

# B batch, L queries
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor, nn

from ..attention.inputs import AttentionInputs
from ..attention.method import AttentionMethod, halved
from ..cache import SinkWindowLayer, UnrotatedLayer
from ..method import Footprint
from ..ops.branch import Branch
from ..ops.masks import BeyondWindow, Window


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamingLLM(AttentionMethod):
    """StreamingLLM (Xiao et al. 2023): keep the first tokens as attention sinks and a window of recent ones.

    Positions are those inside the cache (section 3.2): once tokens have been dropped, the first ones stand right before
    the window, so no distance ever exceeds the cache. On most texts it reads like `LMInfinite`, which keeps the first
    tokens at one far distance instead of next to the window.

    Use when: a chat, a log or a stream continues indefinitely and only the recent part matters.

    Cannot: retrieve anything that has left the window; `LMInfinite` with `top_k` can.

    Costs: constant memory and time per token, less than the stock model's beyond the window.

    Differs from the authors' code: what a token sees is defined token by token, so it does not depend on how a prompt
    is cut into chunks or turns (theirs evicts once per call); batches, padding and GQA work.

    Args:
        n_sink: First tokens that stay. The paper finds 4 enough and 0 fatal (table 2).
        window: Recent tokens that stay, the query's own included. None: as many as make the cache the model's trained
            length (`config.max_position_embeddings - n_sink`).
    """

    name: ClassVar[str] = "streaming_llm"
    summary: ClassVar[str] = "first tokens + a window, positions inside the cache: fluent at any length"
    paper: ClassVar[str] = "https://arxiv.org/abs/2309.17453"

    n_sink: int = 4
    window: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_sink < 0:
            raise ValueError(f"n_sink={self.n_sink}: expected 0 or more; the paper uses 4.")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window}: StreamingLLM needs at least 1 recent token, the query's own.")

    def resolve(self, config: Any) -> StreamingLLM:
        """Fill in `window`."""
        if self.window is not None:
            return self
        trained = getattr(config, "max_position_embeddings", None)
        if trained is None or trained <= self.n_sink:
            raise ValueError(
                f"window=None: the trained length, {trained}, leaves no room beside {self.n_sink} sinks. Set window."
            )
        return dataclasses.replace(self, window=trained - self.n_sink)

    def footprint(self, module: nn.Module) -> Footprint:
        """The sinks, the window, and the query's own key."""
        assert self.window is not None
        return Footprint(kept=self.n_sink + self.window - 1, span=self.n_sink + self.window)

    def sees(self) -> str:
        """The sinks and the window."""
        return f"the first {self.n_sink} and the last {self.window:,} tokens; forgets what lies between"

    def smaller(self) -> Iterator[tuple[str, StreamingLLM]]:
        """Smaller windows."""
        for window in halved(self.window):
            yield f"window={window}", dataclasses.replace(self, window=window)

    def cache_layer(self, module: nn.Module) -> UnrotatedLayer:
        """The sinks and the window."""
        assert self.window is not None
        return SinkWindowLayer(self, n_first=self.n_sink, n_last=self.window - 1)

    def branches(self, inputs: AttentionInputs) -> list[Branch]:
        """The window, and the sinks right before it."""
        assert self.window is not None
        sinks = inputs.first(self.n_sink)
        local = inputs.branch(Window(self.window), inputs.keys, *inputs.window_ropes(self.window))
        if not len(sinks):
            return [local]
        start = sinks.pos[:, :1].clamp(min=0)
        full = self.n_sink + self.window - 1  # the query's position once the cache is full

        def in_cache() -> Tensor:
            return (inputs.q_pos_BL - start).clamp(min=0, max=full)

        q_rope = inputs.memo("position in the cache", lambda: inputs.rotation(in_cache()))
        k_rope = inputs.memo("sinks", lambda: inputs.rotation((sinks.pos - start).clamp(min=0)))
        return [local, inputs.branch(BeyondWindow(self.window), sinks, q_rope, k_rope)]
