"""The stock model as a teacher: a loss that is the divergence from its distribution of the next token, in chunks.

LongReD (Dong et al. 2025, https://arxiv.org/abs/2502.07365) distils short texts into a model that is extended, so that
it keeps what it could do. Here all of the next token's distribution is compared, not hidden states.
"""

# B rows, T tokens of a row, N = B T tokens, H hidden size, V vocabulary
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from hf_longctx.anatomy import find_decoder
from hf_longctx.training.memory.pending import CHUNK, PendingLogits, Wanted
from hf_longctx.training.memory.tiles import Tiled, in_tiles

from .settings import taught
from .stock import Stock


class Teacher:
    """The stock model within its trained length, with the positions that it was trained with.

    Args:
        model: Of the same vocabulary as its student's.
        length: Tokens of the longest window that it will read.

    Raises:
        ValueError: The model does not read so many tokens.
    """

    def __init__(self, model: Any, length: int) -> None:
        if length > model.config.max_position_embeddings:
            raise ValueError(
                f"distil, rehearsal: length: {length}: the stock model reads {model.config.max_position_embeddings} "
                f"tokens, and says nothing of longer windows. Give at most that."
            )
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def of(cls, config: dict[str, Any], device: torch.device, stock: Stock) -> Teacher:
        """The stock model, which is the teacher's own from now on, for what the settings distil and rehearse."""
        return cls(stock.taken().to(device), max(part["length"] for part in taught(config).values()))

    @contextmanager
    def teaching(self, student: Any, ids_BT: Tensor) -> Iterator[None]:
        """Inside the block the chunked loss of `student` is its divergence from the teacher, in the place of nats."""
        with torch.no_grad():
            hidden_BTH = find_decoder(self.model)(input_ids=ids_BT, use_cache=False).last_hidden_state
        stock = student.loss_function

        def loss_function(logits: PendingLogits, *args: Any, **kwargs: Any) -> Tensor:
            loss: Tensor = stock(TaughtLogits(logits, self.model.get_output_embeddings(), hidden_BTH), *args, **kwargs)
            return loss

        student.loss_function = loss_function
        try:
            yield
        finally:
            student.loss_function = stock


class TaughtLogits(PendingLogits):
    """Logits that are not computed yet, and what the teacher's head reads."""

    def __init__(self, pending: PendingLogits, teacher: nn.Module, hidden_BTH: Tensor) -> None:
        super().__init__(pending.head, pending.hidden_BTH, pending.steps)
        self.teacher, self.taught_BTH = teacher, hidden_BTH

    def log_probs(self, labels_BT: Tensor, ignore_index: int) -> Tensor:
        """In the place of a label's log-probability the negative divergence at its token, (B, T)."""
        labels_N = labels_BT.to(self.device).flatten()
        wanted = Divergence(self.steps, labels_N, ignore_index, self.teacher, self.taught_BTH.flatten(0, -2))
        found: Tensor = self.head(self.hidden_BTH, wanted)
        return found.view(labels_BT.shape)


@dataclass(frozen=True, eq=False)
class Divergence(Wanted):
    """What a head is asked for: the negative Kullback-Leibler divergence of its logits from the teacher's."""

    teacher: nn.Module
    taught_NH: Tensor

    def of(self, head: nn.Module, forward: Callable[[Tensor], Tensor], hidden_BTH: Tensor) -> Tensor:
        """(N,), from hidden states, in chunks; 0 where a label is ignored."""

        def run(hidden_NH: Tensor, rows: slice) -> Tensor:
            with torch.no_grad():
                taught_NV = self._log_probs(self.teacher(self.taught_NH[rows]))
            own_NV = self._log_probs(forward(hidden_NH[None])[0])
            found_N = -kl_div(own_NV, taught_NV, reduction="none", log_target=True).sum(-1)
            return found_N.where(self.labels_N[rows] != self.ignore_index, 0)

        return in_tiles(Tiled(run, head, CHUNK), hidden_BTH.flatten(0, -2))

    def _log_probs(self, logits_NV: Tensor) -> Tensor:
        for step in self.steps:
            logits_NV = step(logits_NV)
        return log_softmax(logits_NV, -1, dtype=torch.promote_types(logits_NV.dtype, torch.float32))
