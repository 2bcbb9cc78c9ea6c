"""Which models the switch takes: what would be computed wrongly, or differently on each rank, is refused by name."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import DynamicCache, PreTrainedModel

from ...anatomy import FULL, attention_layers, find_decoder, layer_types
from ...cache.recurrent import has_states
from ...patch import applied
from ...rope.parameters import moving_types
from ...upstream.signatures import names_in

SLIDING = "sliding_attention"
INTERFACE = "ALL_ATTENTION_FUNCTIONS"
ALONE = "Train it under DDP or FSDP2 alone, which share rows."


def check_model(root: Any, asked: str) -> nn.Module:
    """The decoder of a model whose attention can be shared among ranks; ValueError says why that of others cannot."""
    name = type(root).__name__
    if not isinstance(root, PreTrainedModel):
        raise ValueError(
            f"{name}: expected a model of transformers. Apply {asked} before the model is wrapped by DDP or another "
            f"module."
        )
    decoder: Any = find_decoder(root)
    if root.get_output_embeddings() is None:
        raise ValueError(
            f"{name}: it has no language modelling head. Sequence parallelism answers token by token: give the whole "
            f"causal language model (AutoModelForCausalLM), not a part of it or a classifier."
        )
    for patch in applied(root):
        if patch.method.decides_positions or not patch.method.native:
            raise ValueError(
                f"{patch.method!r} is applied to the model: only scaled RoPE goes together with {asked}. Undo it first "
                f"(hf_longctx.undo(model))."
            )
    _check_config(decoder.config, name)
    _check_layers(decoder, name)
    return decoder


def window_layers(decoder: nn.Module) -> tuple[int, int]:
    """How many attention layers have a sliding window, and how many there are."""
    kinds = layer_types(attention_layers(decoder))
    return sum(kind == SLIDING for kind in kinds), len(kinds)


def _check_config(config: Any, name: str) -> None:
    parameters = getattr(config, "rope_parameters", None) or {}
    moving = moving_types(parameters)
    if moving:
        raise ValueError(
            f"rope_type={moving[0]!r} chooses its frequencies by the length of the input, and each rank sees another "
            f"length. Use static frequencies, such as yarn or ntk (hf_longctx.RopeScaling)."
        )
    if "mrope_section" in parameters:
        raise ValueError(f"{name}: its tokens have several positions each (mrope), expected one. {ALONE}")
    if getattr(config, "attn_logit_softcapping", None):
        raise ValueError(f"{name}: its attention has a softcap, which SequenceParallel does not support. {ALONE}")
    if getattr(config, "output_router_logits", False):
        raise ValueError(
            f"{name}: output_router_logits=True adds the auxiliary loss of a mixture of experts, which is not a sum "
            f"over the ranks' tokens. Set model.config.output_router_logits = False."
        )


def _check_layers(decoder: Any, name: str) -> None:
    layers: list[Any] = attention_layers(decoder)
    attending = set(layers)
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList)]
    # not those of experts, or of rotary embeddings
    stacks = [one for one in lists if any(m in attending for m in one.modules())]
    stacked = [layer for stack in stacks for layer in stack]
    without = sorted({type(one).__name__ for one in stacked if attending.isdisjoint(one.modules())})
    if without or has_states(DynamicCache(config=decoder.config)):
        raise ValueError(
            f"{name}: {', '.join(without) or 'its layers'} carry a state or a convolution along the sequence, which "
            f"would have to pass from rank to rank. SequenceParallel serves models with attention in every layer. "
            f"{ALONE}"
        )
    if getattr(decoder.config, "num_kv_shared_layers", None):
        raise ValueError(
            f"{name}: layers read the keys of other layers, which SequenceParallel does not support. {ALONE}"
        )
    for module, kind in zip(layers, layer_types(layers), strict=True):
        if INTERFACE not in names_in(type(module).forward):
            raise ValueError(
                f"{name}: {type(module).__name__} does not call transformers' attention interface, so its attention "
                f"cannot be shared among ranks. {ALONE}"
            )
        if kind not in (FULL, SLIDING):
            raise ValueError(
                f"{name}: layer {module.layer_idx} is of the kind {kind!r}; SequenceParallel serves {FULL} and "
                f"{SLIDING}. {ALONE}"
            )
        if getattr(module, "sinks", None) is not None:
            raise ValueError(
                f"{name}: {type(module).__name__} has attention sinks, which SequenceParallel does not support. {ALONE}"
            )
