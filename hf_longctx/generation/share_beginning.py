"""`model.generate(..., custom_generate=share_beginning)`: what all rows begin with is read and kept once (Hydragen).

For many samples of one prompt (`num_return_sequences=64`), and for batches whose prompts begin alike. What comes out is
what `generate` gives without it. https://arxiv.org/abs/2402.05099
"""

# B batch, L tokens of a prompt
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationMode

from ..sharing.prefix import shared_prefix
from ..upstream.caches import cache_in, generate_cache, without_cache

DECODING = {
    GenerationMode.GREEDY_SEARCH: "_sample",
    GenerationMode.SAMPLE: "_sample",
    GenerationMode.BEAM_SEARCH: "_beam_search",
    GenerationMode.BEAM_SAMPLE: "_beam_search",
}


def share_beginning(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    **model_kwargs: Any,
) -> Any:
    """A decoding method for `custom_generate`: greedy, sampling and beams, with the rows' common beginning in one copy.

    Raises:
        ValueError: rows begin with different tokens, or with padding, so there is nothing to share; the call brings a
            cache or embeddings; another decoding method; or the model is one that `shared_prefix` refuses.
    """
    mode = generation_config.get_generation_mode()
    if mode not in DECODING:
        raise ValueError(f"share_beginning does greedy decoding, sampling and beams, not {mode}. Leave it out.")
    given = cache_in(model_kwargs)
    if (given is not None and given.get_seq_length()) or model_kwargs.get("inputs_embeds") is not None:
        raise ValueError(
            "share_beginning reads prompts of token ids from their start: leave the cache and inputs_embeds "
            "out. For several turns, share a prefix: shared_prefix(model, ids) and prefix.cache()."
        )
    if not generation_config.use_cache:
        raise ValueError(
            "use_cache=False (of the call or the model's settings): what is shared is a cache. Give use_cache=True."
        )
    length = common_beginning(input_ids, model_kwargs.get("attention_mask"))
    if not length:
        raise ValueError(
            f"share_beginning: the {len(input_ids)} rows of input_ids begin with different tokens, or with padding. "
            f"Give prompts that begin alike, padded on the left not at all; with questions of unequal length, use "
            f"shared_prefix(model, document_ids) and prefix.generate(question_ids, attention_mask=...)."
        )
    chunk = generation_config.prefill_chunk_size
    with shared_prefix(model, input_ids[0, :length], chunk=chunk) as prefix:
        cache = prefix.cache()
        if generation_config.max_length is not None:
            cache.most = generation_config.max_length - length - 1
        return getattr(type(model), DECODING[mode])(
            model,
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            **without_cache(model_kwargs),
            **generate_cache(cache),
        )


def common_beginning(input_ids_BL: Tensor, mask_BL: Tensor | None) -> int:
    """How many tokens all rows begin with, the last one of a prompt left out: every row reads that itself."""
    alike = (input_ids_BL == input_ids_BL[:1]).all(0)
    if mask_BL is not None:
        alike &= (mask_BL != 0).all(0)
    return int(torch.cumprod(alike[:-1].long(), 0).sum())
