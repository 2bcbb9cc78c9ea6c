"""Finds a model's parts by structure: the text decoder, its attention layers, its rotary embedding.

No model type is asked for: whatever has layers with attention in them and a rotary embedding is a decoder that we can
work on, if the self-check of `attention/selfcheck.py` agrees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .upstream.signatures import names_in, parameters

FULL = "full_attention"
WAYS = {"ALL_ATTENTION_FUNCTIONS", "scaled_dot_product_attention", "_attn"}  # in the code of what attends
TABLE = "embed_positions"  # the buffer of a model that looks sines and cosines up
BESIDE = "hybrid"  # full attention beside a recurrence, in one layer
BOUNDED = ("sliding", "chunked", "linear", "local")  # kinds of layers that see or keep a limited number of tokens


def find_decoder(model: Any) -> nn.Module:
    """The module that owns the decoder layers and the rotary embedding, e.g. `model.model` of a Llama.

    Of a vision-language model it is the text decoder. ValueError says what was looked for and what was there.
    """
    decoders = [m for m in model.modules() if _owns_rotary(m) and attention_layers(m)]
    if not decoders:  # tables of angles inside each attention module (GPT-J)
        owners = (m for m in model.modules() if any(isinstance(c, nn.ModuleList) for c in m.children()))
        decoders = [m for m in owners if not _is_attention(m) and _rotary_inside(m) is not None]
    if len(decoders) > 1 and hasattr(model, "config"):
        text = model.config.get_text_config(decoder=True)
        decoders = [m for m in decoders if getattr(m, "config", None) is text] or decoders
    if not decoders:
        raise ValueError(
            f"{type(model).__name__}: no decoder with rotary position embeddings was found. Looked for a module with "
            f"layers, a rotary embedding (a module with `inv_freq`) and attention that calls transformers' attention "
            f"interface, torch's scaled_dot_product_attention or a method `_attn` of its own; the model has "
            f"{_census(model)}. Methods of hf_longctx work on causal language models with RoPE, such as Llama, Qwen or "
            f"Gemma."
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


def refuse_encoder_decoder(model: Any, what: str) -> None:
    """ValueError for a model whose `input_ids` an encoder reads, and not the decoder that writes after them."""
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__}: {what} is for causal language models, not for encoder-decoders. Give one such as "
            f"Llama, Qwen or Gemma."
        )


def decoder_layers(decoder: nn.Module) -> list[nn.Module]:
    """The layers of a decoder, those without attention too, whatever their list is called (`layers`, `h`, `blocks`)."""
    found: list[nn.Module] = []
    for child in decoder.children():
        if isinstance(child, nn.ModuleList):
            found += child
        elif not _is_attention(child) and any(isinstance(m, nn.ModuleList) for m in child.children()):
            found += decoder_layers(child)  # two stacks (HRM)
    return found


def attention_layers(decoder: nn.Module) -> list[nn.Module]:
    """The attention modules of a decoder's layers, in order: the innermost that take positions and attend."""
    inner = [m for layer in decoder_layers(decoder) for m in layer.modules() if _is_attention(m)]
    return [m for m in dict.fromkeys(inner) if not any(c is not m and _is_attention(c) for c in m.modules())]


def rotary_of(decoder: nn.Module) -> nn.Module:
    """The rotary embedding of a decoder, or of its attention modules, which all have the same.

    An attention module itself where it has a table of angles (GPT-J).
    """
    found = next(_rotaries(decoder), None) or _rotary_inside(decoder)
    assert found is not None, "find_decoder found one"
    return found


def full_attention_layers(decoder: nn.Module) -> list[nn.Module]:
    """Those attention modules that see the whole past; sliding and chunked layers are left out.

    ValueError if there is none, or if another part of the model chooses the keys that they see.
    """
    layers = attention_layers(decoder)
    kinds = layer_types(layers)
    full = [m for m, kind in zip(layers, kinds, strict=True) if kind in (FULL, BESIDE)]
    for module in full or layers:
        parts: list[Any] = [part for part in module.modules() if part is not module]
        chooser: Any = next((part for part in parts if takes_embeddings(part.__class__)), None)
        if chooser is not None:
            raise ValueError(
                f"{type(module).__name__}: its {type(chooser).__name__} chooses or compresses the keys that a query "
                f"sees (sparse attention), which a method's own choice would replace. hf_longctx does not support this "
                f"model."
            )
    if not full:
        unknown = sorted({kind for kind in kinds if not kind.startswith(BOUNDED)})
        reason = "so their memory and distances are bounded already."
        if unknown:
            reason = (
                f"and methods of hf_longctx do not serve {' or '.join(unknown)}, which choose or compress their keys."
            )
        raise ValueError(
            f"{type(decoder).__name__}: none of its {len(layers)} attention layers is a full-attention layer (they "
            f"are: {', '.join(sorted(set(kinds)))}), {reason}"
        )
    return full


def layer_type(module: Any) -> str:
    """`full_attention`, `sliding_attention`, ...: the entry of `config.layer_types`, or what the config implies."""
    return layer_types([module])[0]


def layer_types(modules: Sequence[Any]) -> list[str]:
    """`layer_type` of each. A config that several share is asked once: its attributes are slow to look up."""
    kinds: dict[int, Any] = {}
    configs = [getattr(module, "config", None) for module in modules]
    for config in configs:
        if config is not None and id(config) not in kinds:
            types = getattr(config, "layer_types", None)
            kinds[id(config)] = _implied(config) if types is None else types
    found = ((kinds.get(id(config)), module) for config, module in zip(configs, modules, strict=True))
    return [_kind(kind, module) for kind, module in found]


def _kind(kinds: Any, module: Any) -> str:
    if kinds is None:  # no config
        return str(getattr(module, "layer_type", FULL))
    return kinds if isinstance(kinds, str) else str(kinds[module.layer_idx])


def _implied(config: Any) -> str:
    """The type of all layers of a config that does not list them."""
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        return "sliding_attention"
    return "chunked_attention" if getattr(config, "attention_chunk_size", None) is not None else FULL


def _rotaries(module: nn.Module) -> Iterator[nn.Module]:
    """Rotary embeddings among a module's children, the one of the usual name first."""
    named = getattr(module, "rotary_emb", None)
    for child in (named, *module.children()):
        if isinstance(child, nn.Module) and any(name.endswith(("inv_freq", TABLE)) for name in child._buffers):
            yield child


def _owns_rotary(module: nn.Module) -> bool:
    return not _is_attention(module) and next(_rotaries(module), None) is not None


def _rotary_inside(decoder: nn.Module) -> nn.Module | None:
    """The rotary embedding of the first attention module that has one of its own, or that module, if it has a table."""
    for module in attention_layers(decoder):
        own = module if has_table(module) else next(_rotaries(module), None)
        if own is not None:
            return own
    return None


def weight_of(module: nn.Module) -> Tensor:
    """Any tensor of a module's weights, which says where it computes.

    A quantisation may keep them as buffers (GPTQ, AWQ) or in objects of its own (torch.ao on CPUs): then there is no
    parameter, or no tensor at all.
    """
    return next(chain(module.parameters(), module.buffers()), torch.empty(0))


def has_table(module: nn.Module) -> bool:
    """Does a module look its angles up in a table?"""
    return isinstance(getattr(module, TABLE, None), Tensor)


def _is_attention(module: Any) -> bool:
    kind: Any = type(module)
    if not hasattr(module, "layer_idx") or hasattr(module, "mlp") or not _attends(kind):
        return False
    return takes_embeddings(kind) or has_table(module) or next(_rotaries(module), None) is not None


def _attends(cls: Any) -> bool:
    """Does its forward come to attention in one of the ways in which we can reach it? See `attention/ways.py`."""
    return not WAYS.isdisjoint(names_in(getattr(cls, "_stock", cls).forward))


def takes_embeddings(cls: Any) -> bool:
    """Are modules of a class handed position embeddings?"""
    return "position_embeddings" in parameters(cls.forward)


def _census(model: nn.Module) -> str:
    names = sorted({type(m).__name__ for m in model.modules() if "ttention" in type(m).__name__})
    return f"attention modules {', '.join(names)}" if names else "no attention modules at all"
