"""Batches whose rows ended early and continue in the next turn.

`generate` writes padding after a row's end until the last row ends, and a bounded cache takes it for text. The next
turn's attention mask hides it and lets the row continue at the position after its end; where the padding has pushed
tokens out of a window that the row needs again, the text is read once more.
"""

# B batch, T tokens read so far
from __future__ import annotations

import logging
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from ..cache.stock import unrotated_layers
from .caches import adopt_all
from .state import DecoderState

logger = logging.getLogger("hf_longctx")


def check_new_tokens(cache: Any, input_ids: Tensor, embeds: Tensor | None, columns: int | None) -> None:
    """ValueError where `generate` is given a text of which the cache has read everything, or more.

    transformers then reads all of it again, or whatever its slice by a negative number leaves.

    Args:
        cache: The one that it continues, or None.
        input_ids: (B, T) of the whole text, or of its new tokens.
        embeds: (B, T, X) of the whole text, in place of its ids.
        columns: Of the attention mask of the whole text; another number than T says that the ids are new ones.
    """
    seen = cache.get_seq_length() if isinstance(cache, Cache) else 0
    length = input_ids.shape[1] if embeds is None else embeds.shape[1]
    if seen and seen >= length and (embeds is not None or columns == length):
        raise ValueError(
            f"the cache has read {seen} tokens, and generate was given a text of {length}: it reads the tokens after "
            f"those in the cache, and there are none. Give all tokens so far and at least one more, or start with a "
            f"new cache."
        )


def read_again_if_needed(
    state: DecoderState, decoder: Any, cache: Any, input_ids: Tensor, mask_BT: Tensor | None
) -> None:
    """Empty a cache that misses tokens that `generate`'s next ones see; it then reads all of `input_ids`.

    ValueError where `input_ids` are only the new tokens, so that there is nothing to read again.
    """
    seen = cache.get_seq_length() if isinstance(cache, Cache) else 0
    if not seen or mask_BT is None or mask_BT.ndim != 2 or mask_BT.shape[1] <= seen:
        return
    layers = unrotated_layers(cache)
    shown_BT = mask_BT[:, :seen].bool()
    next_B = shown_BT.sum(1)  # the position that `generate` gives a row's next token
    for layer in layers:
        layer.show(shown_BT)
    missing = [layer.misses(next_B).to(next_B.device) for layer in layers]
    if not any(bool(rows_B.any()) for rows_B in missing):
        return
    if mask_BT.shape[1] != input_ids.shape[1]:
        raise ValueError(
            f"input_ids of {input_ids.shape[1]} tokens with an attention_mask of {mask_BT.shape[1]}: a row that ended "
            f"early continues, and the cache of {state.method.name} has dropped tokens that it would see. Give the ids "
            f"of the whole text, as many as the mask has columns, and it is read again."
        )
    logger.info(
        "reading %d tokens again: a row that ended early continues, and has lost tokens that it would see", seen
    )
    empty = DynamicCache(config=decoder.config)
    adopt_all(state, empty)
    cache.layers[:] = empty.layers
