"""The attention function that a model's layers call under the switch. The layout comes as a keyword of the forward."""

# B batch (1), H query heads, G key/value heads, L rows of a rank, D head dim
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from ...ops.dtypes import as_dtype
from ...ops.masks import Causal, Window
from ...settings import KEY
from ..op import attention as shared_attention
from ..ranks import Ranks

NAME = f"{KEY}_sequence_parallel"
LAYOUT = "sequence_parallel"  # the keyword by which the layout travels through a stock model
# what some models hand to their attention besides, and what it is
NOT_DONE = {
    "softcap": "a softcap",
    "s_aux": "attention sinks",
    "position_bias": "a position bias",
    "cu_seq_lens_q": "documents of its own",
}


# torch.compile goes around it: the layout of ranks is another one in each batch, and a graph would be made for each
@torch.compiler.disable
def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    sequence_parallel: Ranks | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention with the signature that transformers calls, for the rank's rows of a batch."""
    name = type(module).__name__
    if sequence_parallel is None:
        raise RuntimeError(
            f"{name}: no layout has reached its attention. Call the whole model that SequenceParallel was applied to, "
            f"not a part such as model.model; a model that does not pass keywords on to its layers is not supported."
        )
    given = [what for key, what in NOT_DONE.items() if kwargs.get(key) is not None]
    if attention_mask is not None:
        given.append("a mask of its own")
    if dropout:
        given.append(f"dropout={dropout}")
    if kwargs.get("is_causal") is False:
        given.append("is_causal=False")
    if given:
        raise ValueError(f"{name} passes {', '.join(given)}, which SequenceParallel does not support.")
    if torch.is_autocast_enabled(query.device.type):
        # torch's own attention is cast by autocast; rotating with fp32 cosines has made queries and keys fp32
        query = query.to(torch.get_autocast_dtype(query.device.type))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    inside = Causal() if sliding_window is None else Window(sliding_window)
    ranks, computed = sequence_parallel, query.shape[2]
    rows = ranks.layout.sizes[ranks.rank]
    # a rank without tokens computes one that counts nowhere, and has no part in attention
    q, k, v = (x if computed == rows else x[:, :, :rows] for x in (query, key, value))
    out, _ = shared_attention(q, as_dtype(k, q.dtype), as_dtype(v, q.dtype), ranks, scale=scale, inside=inside)
    return out if computed == rows else torch.nn.functional.pad(out, (0, 0, 0, 0, 0, computed - rows)), None


# without a mask function of this name transformers builds no masks
AttentionInterface.register(NAME, attention)
