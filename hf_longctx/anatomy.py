"""Finds a model's parts by structure: the text decoder, its attention layers, its rotary embedding.

No model type is asked for: whatever has `layers`, a `rotary_emb` and attention modules that take
`position_embeddings` is a decoder that we can work on, if the parity check of `attention/selfcheck.py` agrees.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import nn

FULL = "full_attention"
APART = "apart"  # the kind of a module without a config, which names the attention function


def find_decoder(model: Any) -> nn.Module:
    """The module that owns the decoder layers and the rotary embedding, e.g. `model.model` of a Llama.

    Of a vision-language model it is the text decoder. ValueError says what was looked for and what was there.
    """
    decoders = [m for m in model.modules() if isinstance(getattr(m, "layers", None), nn.ModuleList) and _has_rotary(m)]
    decoders = [m for m in decoders if attention_layers(m)]
    if len(decoders) > 1 and hasattr(model, "config"):
        text = model.config.get_text_config(decoder=True)
        decoders = [m for m in decoders if m.config is text] or decoders
    if not decoders:
        raise ValueError(
            f"{type(model).__name__}: no decoder with rotary position embeddings was found. Looked for a module with "
            f"`layers`, `rotary_emb` and attention that takes `position_embeddings`; the model has {_census(model)}. "
            f"Methods of hf_longctx work on causal language models with RoPE, such as Llama, Qwen or Gemma."
        )
    decoder = decoders[0]
    config: Any = decoder.config
    if getattr(config, "is_encoder_decoder", False) or not getattr(config, "is_causal", True):
        raise ValueError(
            f"{type(model).__name__}: an encoder, or an encoder-decoder, reads in both directions. Methods of "
            f"hf_longctx work on causal language models."
        )
    if any(getattr(m, "is_causal", True) is False for m in attention_layers(decoder)):
        raise ValueError(
            f"{type(model).__name__}: its attention is bidirectional (is_causal=False). Methods of hf_longctx work on "
            f"causal language models."
        )
    return decoder


def attention_layers(decoder: Any) -> list[nn.Module]:
    """The attention modules of a decoder's layers, in order: the innermost with `layer_idx` and rotary arguments."""
    found = []
    for layer in decoder.layers:
        inner = [m for m in layer.modules() if _is_attention(m)]
        found += [m for m in inner if not any(c is not m and _is_attention(c) for c in m.modules())]
    return found


def full_attention_layers(decoder: nn.Module) -> list[nn.Module]:
    """Those attention modules that see the whole past; sliding and chunked layers are left out.

    ValueError if there is none, or if the attention is of a kind that keeps no plain keys (MLA).
    """
    layers = attention_layers(decoder)
    full = [m for m in layers if layer_type(m) == FULL]
    apart = {type(m).__name__ for m in layers if layer_type(m) == APART}
    if not full and apart:
        raise ValueError(
            f"{type(decoder).__name__}: {', '.join(sorted(apart))} attends without transformers' attention interface, "
            f"so hf_longctx cannot reach its attention and does not support it."
        )
    if not full:
        kinds = sorted({layer_type(m) for m in layers})
        raise ValueError(
            f"{type(decoder).__name__}: none of its {len(layers)} attention layers is a full-attention layer (they "
            f"are: {', '.join(kinds)}), so their memory and distances are bounded already."
        )
    for module in full:
        if hasattr(module, "kv_lora_rank") or hasattr(module, "kv_a_proj_with_mqa"):
            raise ValueError(
                f"{type(module).__name__}: multi-head latent attention (MLA) caches compressed keys with a separate "
                f"rotary part; un-rotated caching does not apply to it and hf_longctx does not support it."
            )
        if getattr(module, "attn_logit_softcapping", None):
            raise ValueError(
                f"{type(module).__name__}: attention logit soft-capping ({module.attn_logit_softcapping}) is not "
                f"supported: the branches' log-sum-exp would be of uncapped logits."
            )
        if getattr(module, "sinks", None) is not None:
            raise ValueError(f"{type(module).__name__}: learned attention sinks (a logit per head) are not supported.")
    return full


def layer_type(module: Any) -> str:
    """`full_attention`, `sliding_attention`, ...: the entry of `config.layer_types`, or what the config implies."""
    return layer_types([module])[0]


def layer_types(modules: Sequence[Any]) -> list[str]:
    """`layer_type` of each. A config that several share is asked once: its attributes are slow to look up."""
    kinds: dict[int, Any] = {id(None): APART}
    configs = [getattr(module, "config", None) for module in modules]
    for config in configs:
        if id(config) not in kinds:
            types = getattr(config, "layer_types", None)
            kinds[id(config)] = _implied(config) if types is None else types
    found = ((kinds[id(config)], module) for config, module in zip(configs, modules, strict=True))
    return [kind if isinstance(kind, str) else str(kind[module.layer_idx]) for kind, module in found]


def _implied(config: Any) -> str:
    """The type of all layers of a config that does not list them."""
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        return "sliding_attention"
    return "chunked_attention" if getattr(config, "attention_chunk_size", None) is not None else FULL


def _has_rotary(module: nn.Module) -> bool:
    return isinstance(getattr(module, "rotary_emb", None), nn.Module)


def _is_attention(module: Any) -> bool:
    kind: Any = type(module)
    return hasattr(module, "layer_idx") and not hasattr(module, "mlp") and _takes_positions(kind)


@cache
def _takes_positions(cls: Any) -> bool:
    return "position_embeddings" in inspect.signature(cls.forward).parameters


def _census(model: nn.Module) -> str:
    names = sorted({type(m).__name__ for m in model.modules() if "ttention" in type(m).__name__})
    return f"attention modules {', '.join(names)}" if names else "no attention modules at all"
