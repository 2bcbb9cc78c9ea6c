"""LM-Infinite: a Λ-shaped mask and a ceiling on distances (Han et al. 2023, https://arxiv.org/abs/2308.16137)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..anatomy import attention_layers
from ..attention.found import attend_at_once, found_branch, reading_at
from ..attention.inputs import AttentionInputs
from ..attention.lookup import choose
from ..attention.lookup_settings import on_host
from ..attention.method import AttentionMethod, halved
from ..attention.state import changes_keys
from ..cache import FullLayer, RetrievingLayer, SinkWindowLayer, Store, UnrotatedLayer
from ..method import Footprint
from ..ops.branch import Branch
from ..ops.masks import BeyondWindow, Window
from ..rope.parameters import readable_length

logger = logging.getLogger("hf_longctx")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LMInfinite(AttentionMethod):
    """LM-Infinite (Han et al. 2023): read text of any length with the attention the model was trained for.

    Every token sees the first `n_global` tokens and the last `n_local`; the first ones are read as if they were
    `n_local` away however far they are (the paper's distance ceiling, section 3.2). `top_k` lets every head of the
    later layers look up its best `top_k` tokens in between (section 3.2, "optional").

    Use when: a text is longer than the trained length and should be read fluently; with `top_k`, when single facts far
    back must be found.

    Cannot: retrieve what has left the window with `top_k=0`; relate many far tokens to each other even with it.

    Costs: constant memory and time per token, less than the stock model's beyond the window. With `top_k` all keys are
    kept (those of the window twice), and memory and time per token grow with the text: each token reads all keys.

    Differs from the authors' code: top-k serves every query, in prefill as well (theirs only the last row of a call);
    keys that leave the window are evicted (theirs grow with the text); batches, padding, GQA, chunked prefill and
    several turns work. Symbols: n_global and n_local are the paper's; its L_pretrain is n_local, d = L_pretrain / 2 is
    where top-k tokens are read.

    Args:
        n_global: Tokens at the start that stay visible, at least 0. The paper finds 5 to 100 equally good and 0 fatal.
        n_local: Tokens of the window, the query's own included. None: the model's trained length
            (`config.max_position_embeddings`), the paper's choice.
        top_k: Middle tokens a head may look up for a query; 0: none. The paper uses 5 for retrieval.
        top_k_from_layer: The first layer (from 0) that looks up middle tokens. The paper leaves out five; on SmolLM2
            passkeys are found far more often when the early layers look up too (see the card).
        keys_on_host: With `top_k`, keep the keys and values of layers that look up in host memory, pinned where there
            is a GPU, except those of the window. A page of 8,192 tokens at a time visits the GPU to be scored: slow,
            saves device memory.
    """

    name: ClassVar[str] = "lm_infinite"
    summary: ClassVar[str] = "first tokens + a window, distances capped: fluent at any length, constant memory"
    paper: ClassVar[str] = "https://arxiv.org/abs/2308.16137"
    host_setting: ClassVar[str] = "keys_on_host"

    n_global: int = 10
    n_local: int | None = None
    top_k: int = 0
    top_k_from_layer: int = 2
    keys_on_host: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_local is not None and self.n_local < 1:
            raise ValueError(
                f"n_local={self.n_local}: LMInfinite needs a window of at least 1 token. The paper uses the trained "
                f"length (section 3.2), which is what n_local=None gives."
            )
        for field in ("n_global", "top_k", "top_k_from_layer"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}={getattr(self, field)}: expected 0 or more.")
        if self.keys_on_host and not self.top_k:
            raise ValueError(
                "keys_on_host=True: with top_k=0 there are no old keys to keep. Set top_k, or leave it out."
            )

    def resolve(self, config: Any) -> LMInfinite:
        """Fill in `n_local`."""
        trained = getattr(config, "max_position_embeddings", None)
        if self.n_local is None and trained is None:
            raise ValueError("n_local=None: the config names no trained length (max_position_embeddings). Set n_local.")
        readable = readable_length(config)
        if self.n_local is not None and readable is not None and self.n_local > readable:
            logger.warning("n_local=%d is more than the %d tokens that the config names.", self.n_local, readable)
        return dataclasses.replace(self, n_local=trained if self.n_local is None else self.n_local)

    def check(self, decoder: nn.Module) -> None:
        """Refuse a `top_k_from_layer` beyond the model's last layer."""
        n_layers = len(attention_layers(decoder))
        if self.top_k and self.top_k_from_layer >= n_layers:
            raise ValueError(
                f"top_k_from_layer={self.top_k_from_layer}: the model has {n_layers} layers (0 to {n_layers - 1}), so "
                f"no layer would look up its top {self.top_k}. Choose a smaller one."
            )

    @property
    def looks_up(self) -> bool:
        """With `top_k`."""
        return self.top_k > 0

    def _looks_up(self, module: nn.Module) -> bool:
        return self.top_k > 0 and bool(module.layer_idx >= self.top_k_from_layer)  # type: ignore[operator]

    def footprint(self, module: nn.Module) -> Footprint:
        """The first tokens, the window, and the query's own key; all keys besides in the layers that look up."""
        assert self.n_local is not None
        if self._looks_up(module):
            window = self.n_global + self.n_local
            return Footprint(span=window, looked_up=self.top_k, on_host=self.keys_on_host, twice=window - 1)
        return Footprint(kept=self.n_global + self.n_local - 1, span=self.n_global + self.n_local)

    def sees(self) -> str:
        """The first tokens, the window, and what is looked up."""
        near = f"the first {self.n_global} and the last {self.n_local:,} tokens"
        looked_up = f", and looks up {self.top_k} others a head wherever they are"
        return near + (looked_up if self.top_k else "; forgets what lies between")

    def smaller(self) -> Iterator[tuple[str, LMInfinite]]:
        """Keys in host memory, then smaller windows."""
        more = f" --set top_k={self.top_k}" if self.top_k else ""
        if self.top_k and not self.keys_on_host:
            yield f"keys_on_host=true{more}", dataclasses.replace(self, keys_on_host=True)
        for window in halved(self.n_local):
            yield f"n_local={window}{more}", dataclasses.replace(self, n_local=window)

    @classmethod
    def proposals(cls, tokens: int, trained: int | None) -> list[LMInfinite]:
        """With the paper's look-ups, and without any."""
        return [cls(top_k=5), cls()]

    def cache_layer(self, module: nn.Module) -> UnrotatedLayer:
        """The first tokens and the window, and a store of all tokens where they are looked up."""
        assert self.n_local is not None
        if not self._looks_up(module):
            return SinkWindowLayer(self, n_first=self.n_global, n_last=self.n_local - 1)
        if (changes_keys(module) or torch.compiler.is_compiling()) and not self.keys_on_host:
            return FullLayer(self)  # attention gets all that is looked up; and a compiler cannot follow a store
        host = on_host(module, self.keys_on_host)
        return RetrievingLayer(self, self.n_global, self.n_local - 1, centred_by=0, on_host=host)

    def branches(self, inputs: AttentionInputs) -> list[Branch]:
        """A window, the first tokens beyond it at the ceiling, and with `top_k` chosen keys in between, halfway."""
        assert self.n_local is not None
        window, first = window_and_first(inputs, self.n_global, self.n_local)
        if not self._looks_up(inputs.module) or not inputs.looking:
            return [window, first]
        if inputs.step.ends == inputs.q_BHLD.shape[2]:  # all that there is has come with the queries
            inputs = dataclasses.replace(inputs, everything=None)
        q_half, table = self._found(inputs, inputs.everything or Store.of(inputs.keys))
        return [window, first, found_branch(inputs, q_half, table)]

    def attention(self, inputs: AttentionInputs) -> Tensor:
        """The output of one layer; for one token over pages, what it has found is read where it lies."""
        assert self.n_local is not None
        out = None
        if self._looks_up(inputs.module):
            seen = partial(window_and_first, inputs, self.n_global, self.n_local)
            out = attend_at_once(inputs, seen, partial(self._found, inputs), None)
        return super().attention(inputs) if out is None else out

    def _found(self, inputs: AttentionInputs, store: Store) -> tuple[Tensor, Tensor]:
        """Queries halfway, where they read what they find, and its slots."""
        assert self.n_local is not None
        q, after_B = reading_at(inputs, self.n_local // 2), inputs.after(self.n_global)
        return q, choose(q, inputs.q_pos_BL, store, k=self.top_k, near=self.n_local, after_B=after_B)


def window_and_first(inputs: AttentionInputs, n_global: int, n_local: int) -> tuple[Branch, Branch]:
    """The window of `n_local` tokens at their true distances, and the first `n_global` beyond it at the ceiling."""
    ceiling = inputs.relative(-n_local)  # all of them at distance n_local, wherever the query is
    window = inputs.branch(Window(n_local), inputs.keys, *inputs.window_ropes(n_local))
    return window, inputs.branch(BeyondWindow(n_local), inputs.first(n_global), q_rope=None, k_rope=ceiling)
