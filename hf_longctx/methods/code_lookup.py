"""CodeLookup: a window, and tokens that are found again by binary codes of their keys, wherever they are."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..attention.found import (
    GatheredTokens,
    asked_by,
    attend_at_once,
    gated,
    lowered_but,
    reading_at,
    searched,
)
from ..attention.inputs import AttentionInputs
from ..attention.lookup import choose, move_and_choose
from ..attention.lookup_settings import check_lookup, check_margin, half_of, on_host
from ..attention.method import AttentionMethod, halved
from ..attention.retrieving_heads import check_heads, check_heads_of, retrieving_heads, voting
from ..cache import RetrievingLayer, SinkWindowLayer, Store, UnrotatedLayer
from ..method import Footprint
from ..ops.branch import Branch
from ..rope.parameters import readable_length
from .lm_infinite import window_and_first

logger = logging.getLogger("hf_longctx")
MOST = 256  # first keys that codes are centred by at most
CHOICES = {"by": ("signs", "keys"), "per": ("group", "head"), "gate": ("score", "count", "heads", None)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeLookup(AttentionMethod):
    """Look-up by codes, after RaBitQ (Gao and Long 2024) and LM-Infinite's top-k (Han et al. 2023).

    Every token sees the first `n_global` tokens and the last `n_local`, as under `LMInfinite`; besides, the heads of a
    group look up the `top_k` best tokens in between. Codes of one bit a channel, two where heads have up to 64, make a
    shortlist, whose real keys are then scored, so that a text is searched at a fraction of the bytes of its keys.

    Use when: single facts must be found again in a text that is many times as long as the model was trained for.

    Cannot: relate many far tokens to each other, or follow chains of facts; answer what the model cannot answer inside
    its window.

    Costs: all keys, values and codes are kept (a code is 1/28 of the keys and values of a head of 128 in bf16, 1/14 of
    64), and time per token grows with the text; training with `gate="score"` attends to the window twice.

    Differs from RaBitQ: keys, not vectors of a data base, with a width for each channel, centred by the first keys of
    the text, and a second bit of half the weight in small heads. Differs from LM-Infinite's top-k: few keys for a group
    of heads instead of some for each head, in every layer, and a gate.

    Args:
        n_global: Tokens at the start that stay visible, at least 0.
        n_local: Tokens of the window, the query's own included. None: what `n_global` and `top_k` leave of the model's
            trained length (`config.max_position_embeddings`).
        top_k: Tokens that a query looks up, at least 1: for each group of heads that share keys, or for each head. More
            find no more, and cost fluency.
        shortlist: Tokens whose real keys are scored, at least `top_k`. The longer the text, the more it takes.
        by: "signs": the shortlist comes from the codes; "keys": from the keys themselves, which reads all of them.
        per: "group": the heads that share keys look up the same tokens; "head": each its own.
        read_at: The distance at which found tokens are read, from 1 to `n_local`. None: half of `n_local`. At the end
            of the trained length a model hardly reads.
        gate: What keeps tokens out that only score well by chance. "score": a found token counts only if its score
            comes up to the log-sum-exp of what a head sees in its window, less `gate_margin`; "count": the scores of
            found tokens are lowered by the log of how many tokens the query has searched, by position: those after the
            first ones and at least `n_local` before it; "heads": only the heads of `heads` look up; None: all of them
            count.
        gate_margin: With `gate="score"`, how far below that log-sum-exp a score may be, in nats; below 0, how far
            above it must be. Larger ones let more found tokens count, and from some tens of nats on all do, as without
            a gate. It is in no paper.
        heads: With `gate="heads"`, those that look up, each as [layer, query head], from 0. `calibrated` finds them.
        on_host: Keep keys and values in pinned host memory, except those of the window; their codes stay on the GPU.
    """

    name: ClassVar[str] = "code_lookup"
    summary: ClassVar[str] = "first tokens + a window + tokens found by binary codes of their keys, wherever they are"
    paper: ClassVar[str] = "https://arxiv.org/abs/2405.12497"
    host_setting: ClassVar[str] = "on_host"

    n_global: int = 16
    n_local: int | None = None
    top_k: int = 8
    shortlist: int = 1024
    by: str = "signs"
    per: str = "group"
    read_at: int | None = None
    gate: str | None = "score"
    gate_margin: float = 0.0
    heads: list[list[int]] | None = None
    on_host: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_lookup(self, CHOICES)
        check_margin(self.gate_margin, self.gate)
        check_heads(self.heads, self.gate)
        if self.by == "signs" and self.shortlist < self.top_k:
            raise ValueError(
                f"shortlist={self.shortlist}: expected at least top_k={self.top_k}, the tokens chosen from it."
            )

    def resolve(self, config: Any) -> CodeLookup:
        """Fill in `n_local` and `read_at`."""
        readable, trained = readable_length(config), getattr(config, "max_position_embeddings", None)
        more, n_local = self.n_global + self.top_k, self.n_local
        if n_local is None:
            if trained is None or trained <= more:
                raise ValueError(
                    f"n_local=None: the trained length, {trained}, leaves no room beside n_global={self.n_global} and "
                    f"top_k={self.top_k} tokens. Set n_local."
                )
            n_local = int(trained) - more
        if readable is not None and n_local + more > readable:
            logger.warning(
                "n_global=%d, n_local=%d and top_k=%d are more tokens at once than the %d that the config names.",
                self.n_global, n_local, self.top_k, readable,
            )  # fmt: skip
        return dataclasses.replace(self, n_local=n_local, read_at=self.read_at or half_of(n_local))

    def check(self, decoder: nn.Module) -> None:
        """Refuse `on_host` where there is no GPU, and `heads` that the model does not have."""
        if self.on_host and not torch.cuda.is_available():
            raise ValueError("on_host=True: there is no GPU here, so all keys are in host memory anyway. Leave it out.")
        check_heads_of(decoder, self.heads or [])

    def calibrated(self, model: nn.Module, ids: Iterable[Any], *, share: float = 0.1) -> CodeLookup:
        """These settings with `gate="heads"`, and the heads of `model` that retrieve (Wu et al. 2024).

        The text is read twice in a row with look-ups. A head retrieves if, for at least a share of the tokens of the
        second reading, what it looks up is the token that comes next, and outweighs what it sees in its window (all
        but `gate_margin`, which the result does not keep).

        Args:
            model: A causal language model in eval mode, without a method on its attention.
            ids: Token ids of a text, as the argument `ids` of `hf_longctx.stream`; some thousand, at least 16.
            share: From 0 to 1. The paper's is 0.1 (https://arxiv.org/abs/2404.15574, section 2).

        Raises:
            ValueError: Something is wrong with the arguments, or no head retrieves so often.
        """
        heads = retrieving_heads(model, dataclasses.replace(self, gate="score", heads=None), ids, share)
        return dataclasses.replace(self, gate="heads", gate_margin=0.0, heads=heads)

    def _heads(self, module: Any) -> list[int] | None:
        """The query heads of a layer that look up; None: all of them."""
        return None if self.heads is None else [head for layer, head in self.heads if layer == module.layer_idx]

    @property
    def looks_up(self) -> bool:
        """Always."""
        return True

    @property
    def centred_by(self) -> int:
        """The first keys that codes are centred by: all of them are there before the first token is far enough."""
        assert self.n_local is not None
        return min(MOST, self.n_local) if self.by == "signs" else 0

    def footprint(self, module: nn.Module) -> Footprint:
        """All keys with their codes, and the first tokens and the window once more; else these two alone."""
        assert self.n_local is not None
        window = self.n_global + self.n_local
        if self._heads(module) == []:
            return Footprint(kept=window - 1, span=window)
        coded = self.by == "signs"
        return Footprint(
            span=window, looked_up=self.top_k, twice=window - 1, coded=coded, shortlist=self.shortlist * coded,
            on_host=self.on_host,
        )  # fmt: skip

    def sees(self) -> str:
        """The first tokens, the window, and what is looked up."""
        whose = ("group of heads" if self.per == "group" else "head") + " that retrieves" * (self.heads is not None)
        return (
            f"the first {self.n_global} and the last {self.n_local:,} tokens, and looks up {self.top_k} others per "
            f"{whose}, wherever they are"
        )

    def smaller(self) -> Iterator[tuple[str, CodeLookup]]:
        """Smaller windows."""
        for window in halved(self.n_local):
            yield f"n_local={window}", dataclasses.replace(self, n_local=window, read_at=half_of(window))

    @classmethod
    def proposals(cls, tokens: int, trained: int | None) -> list[CodeLookup]:
        """For what the window does not hold."""
        return [cls()] if trained is None or tokens > trained else []

    def cache_layer(self, module: nn.Module) -> UnrotatedLayer:
        """The first tokens, the window, and a store of all where any head looks up."""
        assert self.n_local is not None
        if self._heads(module) == []:
            return SinkWindowLayer(self, self.n_global, self.n_local - 1)
        return RetrievingLayer(self, self.n_global, self.n_local - 1, self.centred_by, on_host(module, self.on_host))

    def branches(self, inputs: AttentionInputs) -> list[Branch]:
        """The window, the first tokens beyond it, and the tokens found in between."""
        assert self.n_local is not None
        window, first = window_and_first(inputs, self.n_global, self.n_local)
        heads = self._heads(inputs.module)
        if heads == [] or not inputs.looking:
            return [window, first]
        store = inputs.everything or Store.of(inputs.keys, self.centred_by)
        q, table = self._found(inputs, store)
        found = GatheredTokens.of(inputs, store, q, table)
        if self.gate == "score":
            window = inputs.attended(window)
            found = gated(found, window, self.gate_margin)
        if inputs.decoder.watching is not None:
            inputs.decoder.watching(inputs.module, found.table_BTLK)
        branch = found.branch(heads)
        if self.gate == "count":
            branch = dataclasses.replace(branch, lowered_BL=self._lowered(inputs))
        return [window, first, branch]

    def attention(self, inputs: AttentionInputs) -> Tensor:
        """The output of one layer; for one token over pages the window is attended to once, gate included."""
        assert self.n_local is not None
        out, margin = None, self.gate_margin if self.gate == "score" else None
        if inputs.decoder.watching is None:
            seen = partial(window_and_first, inputs, self.n_global, self.n_local)
            found, lowered = partial(self._found, inputs), partial(self._lowered_heads, inputs)
            out = attend_at_once(inputs, seen, found, margin, lowered)
        return super().attention(inputs) if out is None else out

    def _lowered(self, inputs: AttentionInputs) -> Tensor:
        """By how much `gate="count"` lowers the scores of what each query has found, (B, L)."""
        assert self.n_local is not None
        near, after_B = self.n_local, inputs.after(self.n_global)
        counted = lambda: searched(inputs.q_pos_BL, near, after_B).clamp(min=1).log()  # noqa: E731
        lowered_BL: Tensor = inputs.memo(("lowered", near), counted)
        return lowered_BL

    def _lowered_heads(self, inputs: AttentionInputs) -> Tensor | None:
        """By how much a gate lowers them for each head of one query a row, (B, H); inf: it looks up nothing."""
        heads = self._heads(inputs.module)
        if heads is not None:
            return lowered_but(inputs, heads)
        return self._lowered(inputs).expand(-1, inputs.q_BHLD.shape[1]) if self.gate == "count" else None

    def _found(self, inputs: AttentionInputs, store: Store) -> tuple[Tensor, Tensor]:
        """Queries where they read what they find, and its slots."""
        assert self.n_local is not None
        assert self.read_at is not None
        settings: dict[str, Any] = {
            "k": self.top_k, "near": self.n_local, "after_B": inputs.after(self.n_global), "by": self.by,
            "per": self.per, "shortlist": self.shortlist,
        }  # fmt: skip
        heads = self._heads(inputs.module)
        if heads is None:
            rope = inputs.relative(self.read_at)
            return move_and_choose(inputs.q_BHLD, rope, inputs.q_pos_BL, store, **settings)
        q = reading_at(inputs, self.read_at)
        q_asking = voting(q, heads, inputs.keys.k.shape[1])
        asked_T = asked_by(inputs, heads, self.per)
        return q, choose(q_asking, inputs.q_pos_BL, store, **settings, asked_T=asked_T)
