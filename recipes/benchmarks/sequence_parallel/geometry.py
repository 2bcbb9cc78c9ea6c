"""The models that are trained: random weights, full recomputation, and a loss that never holds all logits."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, pad
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from hf_longctx.upstream.checkpointing import enable_checkpointing

from ..geometries import SIZES
from .world import World

IGNORED = -100
ROWS = 2048  # of logits at a time
TINY = {"hidden_size": 288, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 8, "vocab_size": 320}


class HeadWithLoss(nn.Linear):
    """An LM head that answers with the negative log-probability of each label, a few rows of logits at a time."""

    def forward(self, hidden_1LD: Tensor, labels_1L: Tensor) -> Tensor:  # type: ignore[override]
        def part(hidden: Tensor, labels: Tensor) -> Tensor:
            logits = linear(hidden, self.weight).float()
            return cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")

        pieces = zip(hidden_1LD[0].split(ROWS), labels_1L[0].split(ROWS), strict=True)
        return torch.cat([checkpoint(part, *piece, use_reentrant=False) for piece in pieces])[None]


def build(geometry: str, world: World, **changes: Any) -> Any:
    """A stock Llama with random weights; see `prepared`. `changes` are of its config."""
    config = LlamaConfig(
        **SIZES[geometry] | changes | (TINY if world.tiny else {}),
        max_position_embeddings=2**18,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        use_cache=False,
    )
    torch.manual_seed(0)
    with world.device:
        model = LlamaForCausalLM(config).to(world.dtype)
        model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its frequencies stay fp32
    return prepared(model)


def prepared(model: Any) -> Any:
    """The model in training mode, with a head that never holds all logits, under non-reentrant checkpointing."""
    weight = model.lm_head.weight
    head = HeadWithLoss(weight.shape[1], weight.shape[0], bias=False, device="meta")
    head.weight = weight
    model.lm_head = head
    model.forward = types.MethodType(_forward, model)
    enable_checkpointing(model, {"use_reentrant": False})
    model.config.use_cache = False
    return model.train()


def _forward(
    self: Any,
    input_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    labels: Tensor | None = None,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    **kwargs: Any,
) -> CausalLMOutput:
    """The loss, and in `logits` the log-probability of every label, for the comparison of each token."""
    hidden = self.model(input_ids=input_ids, position_ids=position_ids, **kwargs).last_hidden_state
    if shift_labels is None:
        assert labels is not None
        shift_labels = pad(labels[:, 1:], (0, 1), value=IGNORED)
    nll = self.lm_head(hidden, shift_labels)
    items = (shift_labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return CausalLMOutput(loss=nll.sum() / items, logits=-nll)
