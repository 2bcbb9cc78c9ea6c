"""`model.generate(..., custom_generate=share_beginning)`: what all rows begin with is read and kept once (Hydragen)."""

# B batch, L tokens of a prompt
from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationMode

from ..anatomy import refuse_encoder_decoder
from ..sharing.prefix import shared_prefix
from ..upstream.caches import cache_in, check_cache_kind, generate_cache, without_cache
from .procedure import Procedure

DECODING = {
    GenerationMode.GREEDY_SEARCH: "_sample",
    GenerationMode.SAMPLE: "_sample",
    GenerationMode.BEAM_SEARCH: "_beam_search",
    GenerationMode.BEAM_SAMPLE: "_beam_search",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShareBeginning(Procedure):
    """Hydragen inside `generate`: the tokens that all rows begin with are read once, and their keys kept in one copy.

    Greedy decoding, sampling and beams; the output is what `generate` gives without it.

    Use when: many samples of one prompt are drawn (`num_return_sequences=64`), or the prompts of a batch begin alike.

    Cannot: share anything under an attention method, whose keys are un-rotated; read further than the model does.

    Costs: nothing; less memory and time per token than the stock model, the more rows and the longer their beginning.
    """

    name: ClassVar[str] = "share_beginning"
    summary: ClassVar[str] = "what all rows of a batch begin with is read and kept once, in `generate`"
    paper: ClassVar[str] = "https://arxiv.org/abs/2402.05099"
    takes_all_of_generate: ClassVar[bool] = True

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        streamer: Any = None,
        tokenizer: Any = None,
        assistant_tokenizer: Any = None,
        assistant_model: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Called by `generate`.

        Raises:
            ValueError: Rows begin with different tokens, or with padding, so there is nothing to share; the call brings
                a cache or embeddings; another decoding method; or the model is one that `shared_prefix` refuses.
        """
        refuse_encoder_decoder(model, "share_beginning")
        mode = generation_config.get_generation_mode(assistant_model)
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
        own = model.generation_config.cache_implementation
        check_cache_kind(generation_config.cache_implementation, own, "share_beginning")
        length = common_beginning(input_ids, model_kwargs.get("attention_mask"))
        if not length:
            raise ValueError(
                f"share_beginning: the {len(input_ids)} rows begin with different tokens, or with padding. "
                f"Give prompts that begin alike, without left padding; with questions of unequal length, use "
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
                **({} if streamer is None else {"streamer": streamer}),
            )


share_beginning = ShareBeginning()
"""For `custom_generate=`."""


def common_beginning(input_ids_BL: Tensor, mask_BL: Tensor | None) -> int:
    """How many tokens all rows begin with. The last one of a prompt is left out: every row reads that itself."""
    alike = (input_ids_BL == input_ids_BL[:1]).all(0)
    if mask_BL is not None:
        alike &= (mask_BL != 0).all(0)
    return int(torch.cumprod(alike[:-1].long(), 0).sum())
