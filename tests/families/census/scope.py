"""Which model types are decoders with rotary embeddings, and where the others are counted."""

from __future__ import annotations

import sys
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# every model type that transformers has a causal language model for
MODEL_TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

# its code has a rotary embedding, but not for keys in a cache of transformers
NO_ROTARY = {
    "inkling2_text": "only its vision tower rotates",
    "jamba": "its attention has no positions; the rotary function in its code is not called",
    "nemotron_h": "its attention has no positions; the rotary function in its code is not called",
    "recurrent_gemma": "keeps its keys itself, in no cache of transformers",
}
# around a decoder that is counted by itself, where the default config does not say so
WRAPPERS = {
    "blt": "its byte patcher",
    "emu3": "llama",
    "gemma4_assistant": "gemma4_text",
    "gemma4_unified_assistant": "gemma4_unified_text",
    "mllama": "llama",
    "phi4_multimodal": "phi3",
}
NO_ROTARY_CODE = "its code has no rotary embedding"


def wrapped(model_type: str) -> str | None:
    """The model type under which the text decoder of a wrapper is counted; None for what is no wrapper."""
    if model_type in WRAPPERS:
        return WRAPPERS[model_type]
    try:
        config: Any = CONFIG_MAPPING[model_type]()
        text = config.get_text_config(decoder=True)
    except Exception:  # not every config has defaults that are valid
        return None
    inner = text is not config and text.model_type in MODEL_TYPES and not config.is_encoder_decoder
    return text.model_type if inner else None


def without_rotary(model_type: str) -> str | None:
    """Why a model type is no decoder with rotary embeddings; None for one that is, as far as its code shows.

    Such are encoders, models with learned or absolute positions or biases, and those without attention.
    """
    if model_type in NO_ROTARY:
        return NO_ROTARY[model_type]
    module = sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]].__module__]
    return None if any("rotary" in name.lower() for name in vars(module)) else NO_ROTARY_CODE
