"""What a causal language model answers with where its logits never exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class TokenLossOutput(ModelOutput):
    """The loss, and what is said of each token; names and shapes are those of TRL's fused head.

    Args:
        loss: Of the batch.
        log_probs: Of each next label: (B, T - 1), or (B, T) where `shift_labels` were given. 0 where there is none.
        aux_loss: Of a mixture of experts, where asked for.
        hidden_states: Of each layer, where asked for.
        attentions: Of each layer, where asked for.
    """

    loss: Tensor | None = None
    log_probs: Tensor | None = None
    aux_loss: Tensor | None = None
    hidden_states: Any = None
    attentions: Any = None
