"""The training set: batches of windows of one length, in the shares of the mix, each drawn by its number alone."""

# B windows of a batch, T tokens of a window
from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .facts import hide
from .settings import shares_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST = 1_500_000  # tokens from which on a longer document is not drawn more often
BLOCK = 20  # batches within which the order is random: the shares hold from the beginning on
Kind = tuple[str, int]


class Windows(Dataset[dict[str, Tensor]]):
    """Batches of input_ids, the next tokens as labels, and what each weighs.

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
        self.seed = config["training"].get("seed", 0)
        self.steps = config["tokens"] // config["tokens_per_step"]
        count = self.steps * config["tokens_per_step"] // config["batch_tokens"]
        early = round(config["short_first"] * count)
        shares = shares_of(config)
        self.kinds = order(short_only(shares), early, self.seed) + order(shares, count - early, self.seed + 1)

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        kind, length = self.kinds[number]
        rng = random.Random(f"{self.seed}/{number}")
        rows = [self._window(rng, kind, length) for _ in range(self.config["batch_tokens"] // length)]
        ids_BT = torch.tensor([ids for ids, _ in rows])
        weights_BT = torch.tensor([weights for _, weights in rows])
        targets_BT = ids_BT[:, 1:].contiguous()
        batch = {"input_ids": ids_BT[:, :-1].contiguous(), "labels": targets_BT, "shift_labels": targets_BT}
        return batch | {"loss_weights": weights_BT[:, 1:].contiguous()}

    def _window(self, rng: random.Random, kind: str, length: int) -> tuple[list[int], list[float]]:
        """A token more than its length: the last one is a target only."""
        fit = [ids for ids in self.documents if len(ids) > length]
        ids = rng.choices(fit, [min(len(ids), MOST) for ids in fit])[0]
        start = rng.randrange(len(ids) - length)
        text = ids[start : start + length + 1].tolist()
        if kind != "retrieval":
            return text, [1.0] * len(text)
        retrieval = self.config["retrieval"]
        facts, weight, near = retrieval["facts"], float(retrieval["weight"]), retrieval.get("near", 0.0)
        return hide(rng, self.tokenizer, text, length + 1, facts, weight, near)

    def tokens(self) -> dict[str, int]:
        """How many tokens of each kind the batches hold."""
        each = self.config["batch_tokens"]
        return {kind: each * sum(k == kind for k, _ in self.kinds) for kind in dict.fromkeys(k for k, _ in self.kinds)}

    @staticmethod
    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Any]:
        """A batch as the model takes it. Without a cache and a mask, attention is the plain causal one."""
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
