"""The training set: batches of windows of one length, in the shares of the mix, each drawn by its number alone."""

# B windows of a batch, T tokens of a window
from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hf_longctx.parallel.model.documents import IGNORED

from .facts import Row, hide
from .pose import skipping
from .settings import shares_of, taught

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST = 1_500_000  # tokens from which on a longer document is not drawn more often
BLOCK = 20  # batches within which the order is random: the shares hold from the beginning on
Kind = tuple[str, int]


class Windows(Dataset[dict[str, Any]]):
    """Batches of input_ids, the next tokens as labels, and what each weighs.

    Where positions skip, a mask of ones is beside them: without one, transformers takes a skip for the end of a packed
    document, and what comes after it would not see what is before. Batches that are distilled say so.

    A batch depends on the settings, the seed and its number: a resumed run sees those that would have come.

    Args:
        documents: Token ids, by name.
        tokenizer: Of the facts that are hidden.
        config: The recipe's.
    """

    def __init__(
        self, documents: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, config: dict[str, Any]
    ) -> None:
        self.documents, self.tokenizer, self.config = list(documents.values()), tokenizer, config
        self.own: list[Row] | None = None  # of `rehearsal_of`
        self.seed = config["training"].get("seed", 0)
        self.steps = config["tokens"] // config["tokens_per_step"]
        count = self.steps * config["tokens_per_step"] // config["batch_tokens"]
        early = round(config["short_first"] * count)
        shares = shares_of(config)
        self.kinds = order(short_only(shares), early, self.seed) + order(shares, count - early, self.seed + 1)

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, number: int) -> dict[str, Any]:
        rows = self.rows(number)
        ids_BT = torch.tensor([row.ids for row in rows])
        weights_BT = torch.tensor([row.weights for row in rows])
        # what weighs nothing is no target, and does not count in the divisor of a step
        targets_BT = ids_BT[:, 1:].masked_fill(weights_BT[:, 1:] == 0, IGNORED)
        batch: dict[str, Any] = {"input_ids": ids_BT[:, :-1].contiguous(), "labels": targets_BT}
        batch |= {"shift_labels": targets_BT, "loss_weights": weights_BT[:, 1:].contiguous()}
        skipped = [row.positions for row in rows if row.positions is not None]
        if skipped:
            batch |= {"position_ids": torch.stack(skipped), "attention_mask": torch.ones_like(batch["input_ids"])}
        return batch | ({"distilled": True} if self.distilled(*self.kinds[number]) else {})

    def rows(self, number: int) -> list[Row]:
        """The windows of a batch."""
        kind, length = self.kinds[number]
        rng = random.Random(f"{self.seed}/{number}")
        return [self._window(rng, kind, length) for _ in range(self.config["batch_tokens"] // length)]

    def distilled(self, kind: str, length: int) -> bool:
        """Whether such windows are trained towards the stock model, not towards their tokens."""
        distil = self.config["distil"]
        if kind == "rehearsal":
            return "rehearsal" in taught(self.config)
        return distil is not None and kind == "short" and length <= distil["length"]

    def _window(self, rng: random.Random, kind: str, length: int) -> Row:
        """A token more than its length: the last one is a target only."""
        if kind == "rehearsal":
            assert self.own is not None, "rehearsal_of has not been asked"
            return self.own[rng.randrange(len(self.own))]
        fit = [ids for ids in self.documents if len(ids) > length]
        ids = rng.choices(fit, [min(len(ids), MOST) for ids in fit])[0]
        start = rng.randrange(len(ids) - length)
        text = ids[start : start + length + 1].tolist()
        if kind == "retrieval":
            row = hide(rng, self.tokenizer, text, length + 1, self.config["retrieval"])
        else:
            weight = self.config["distil"]["weight"] if self.distilled(kind, length) else 1.0
            row = Row(text, [float(weight)] * len(text))
        pose, longest = self.config["pose"], self.config["length"]
        if pose is None or kind not in pose["kinds"] or length >= longest:
            return row
        return replace(row, positions=skipping(rng, length, pose.get("span", longest), pose["chunks"]))

    def tokens(self) -> dict[str, int]:
        """How many tokens of each kind the batches hold."""
        each = self.config["batch_tokens"]
        return {kind: each * sum(k == kind for k, _ in self.kinds) for kind in dict.fromkeys(k for k, _ in self.kinds)}

    @staticmethod
    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch as the model takes it. Without a cache and what a mask hides, attention is the plain causal one."""
        (batch,) = rows
        return {**batch, "use_cache": False}


def order(shares: dict[Kind, float], count: int, seed: int) -> list[Kind]:
    """`count` kinds in their shares, shuffled in blocks."""
    drawn: dict[Kind, int] = dict.fromkeys(shares, 0)
    kinds: list[Kind] = []
    for number in range(1, count + 1):
        # that which is most behind its share
        kinds.append(max(shares, key=lambda kind: shares[kind] * number - drawn[kind]))
        drawn[kinds[-1]] += 1
    rng = random.Random(seed)
    blocks = [kinds[at : at + BLOCK] for at in range(0, count, BLOCK)]
    return [kind for block in blocks for kind in rng.sample(block, len(block))]


def short_only(shares: dict[Kind, float]) -> dict[Kind, float]:
    """The shares without windows longer than the longest short one."""
    longest = max((length for kind, length in shares if kind == "short"), default=0)
    kept = {kind: share for kind, share in shares.items() if kind[1] <= longest}
    return {kind: share / sum(kept.values()) for kind, share in kept.items()}
