"""What a config says about a model's size, read from the model it builds on the meta device: no weight is touched."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

from ..anatomy import FULL, attention_layers, find_tower, layer_type
from ..attention.parity import head_dim_of
from ..checkpoints.resolve import EXAMPLE_MODEL, _hub_problem, _not_found, locate
from ..rope.parameters import readable_length

NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
COMPOSITE = ("hidden_size", "num_hidden_layers")  # nested text configs leave out what is their class's default


@dataclass(frozen=True)
class Layer:
    """One attention layer as it reads.

    Args:
        heads, kv_heads, head_dim: of its queries, and of its keys and values.
        kept: the tokens its cache keeps at most. None: all.
        span: the keys a query attends to at most, its own included. None: all before it.
        ours: whether a method of hf_longctx reads it: keys un-rotated, no mask; else it is stock.
        top_k: keys that a query looks up among all of them; scores every pair.
        on_host: its cache lives in host memory and visits the device while the layer runs.
    """

    heads: int
    kv_heads: int
    head_dim: int
    kept: int | None = None
    span: int | None = None
    ours: bool = False
    top_k: int = 0
    on_host: bool = False


@dataclass(frozen=True)
class Shape:
    """A model's sizes. `active` counts the parameters that one token's matmuls in the layers use, experts by share."""

    parameters: int
    active: float
    head: int  # parameters of the output projection, tied or not
    hidden: int
    mlp: int
    vocab: int
    n_layers: int
    trained: int | None
    implementation: str
    layers: tuple[tuple[Layer, int], ...]  # attention layers of one kind, and how many there are

    @property
    def widest(self) -> Layer:
        return max((layer for layer, _ in self.layers), key=lambda layer: layer.heads * layer.head_dim)


def read_config(model: str | os.PathLike[str] | PreTrainedConfig) -> tuple[PreTrainedConfig, str]:
    """The config and the name to quote: of a folder, a config.json, a Hub id, a .gguf file or the examples' model."""
    if isinstance(model, PreTrainedConfig):
        return model, model._name_or_path or type(model).__name__
    name = os.fspath(model)
    path = Path(name).expanduser()
    if path.suffix.lower() == ".json" and path.is_file():
        location, source = str(path), path.name
    else:
        checkpoint = locate(model)
        location, source = checkpoint.location, checkpoint.source
        # as in `load`: an unreachable Hub is tried for a minute before it is told
        problem = None if Path(location).is_dir() else _hub_problem(location)
        if problem:
            raise OSError(_not_found(location, problem))
    try:
        raw, _ = PreTrainedConfig.get_config_dict(location)
        config = AutoConfig.from_pretrained(location)
    except Exception as error:  # transformers' own are many: JSON, validation of fields, unknown types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{name!r}: its config cannot be read ({reason}). Expected the config.json of a causal language model that "
            f"transformers knows; give such a folder or file, a Hub id, or {EXAMPLE_MODEL!r}."
        ) from error
    _check_fields(name, raw, config)
    return config, source


def build(config: PreTrainedConfig) -> Any:
    """The model on the meta device: modules and shapes, no memory. ValueError unless it is a causal LM with RoPE."""
    import torch

    problem: Exception | None = None
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) not in auto._model_mapping:
            continue
        try:
            with torch.device("meta"):
                model = auto.from_config(config)
            find_tower(model)
            return model
        except Exception as error:  # wrong sizes fail anywhere in a model's constructor
            problem = problem or error
    reason = f" ({' '.join(str(problem).split())})" if problem else ""
    raise ValueError(
        f"{type(config).__name__}: no causal language model with RoPE can be built from this config{reason}. Give one "
        f"of a Llama-like model: Llama, Qwen, Gemma, Mistral, ..."
    )


def measure(model: Any) -> Shape:
    """The sizes of a model built by `build`, as the stock model reads."""
    tower: Any = find_tower(model)
    config = tower.config
    layers = Counter(stock_layer(module) for module in attention_layers(tower))
    share, mlp = _experts(config)
    active = sum(
        p.numel() * (share if ".experts." in f".{name}." else 1.0)
        for name, p in tower.layers.named_parameters()
        if p.dim() >= 2
    )
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        active=active,
        head=config.vocab_size * config.hidden_size,
        hidden=config.hidden_size,
        mlp=mlp,
        vocab=config.vocab_size,
        n_layers=len(tower.layers),
        trained=readable_length(config),
        implementation=str(config._attn_implementation),
        layers=tuple(layers.items()),
    )


def stock_layer(module: Any) -> Layer:
    """An attention module of the stock model; sliding and chunked ones keep and see their window."""
    config = module.config
    if hasattr(module, "kv_lora_rank") or hasattr(module, "kv_a_proj_with_mqa"):
        raise ValueError(
            f"{type(module).__name__}: the cache of multi-head latent attention (MLA) is not accounted for, and no "
            f"method of hf_longctx applies to it. Give the config of a model with plain keys and values."
        )
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = head_dim_of(module)
    keys = getattr(module, "k_proj", None)
    if keys is not None:  # layers of one model may differ (Gemma 4)
        kv_heads = keys.out_features // head_dim
    window = None
    if layer_type(module) != FULL:
        window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    return Layer(heads, kv_heads, head_dim, kept=None if window is None else window - 1, span=window)


def _experts(config: Any) -> tuple[float, int]:
    """The share of the experts' parameters that a token uses, and the MLP width that it sees."""
    width = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    if isinstance(width, (list, tuple)):
        width = max(width)
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((n for n in (getattr(config, name, None) for name in names) if n), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    if not experts or not chosen:
        return 1.0, width
    each = getattr(config, "moe_intermediate_size", None) or width
    shared = getattr(config, "shared_expert_intermediate_size", None) or 0
    return chosen / experts, chosen * each + shared


def _check_fields(name: str, raw: dict[str, Any], config: PreTrainedConfig) -> None:
    """transformers fills in what a config leaves out, with the sizes of some other model."""
    text = config.get_text_config(decoder=True)
    entry = raw
    if text is not config:
        entry = next((value for value in raw.values() if isinstance(value, dict) and "hidden_size" in value), raw)
    spelled = getattr(text, "attribute_map", {})
    needed = NEEDED if text is config else COMPOSITE
    missing = [field for field in needed if field not in entry and spelled.get(field, field) not in entry]
    if missing:
        raise ValueError(
            f"{name!r}: its config lacks {', '.join(missing)} (it has: {json.dumps(sorted(entry))}). Expected the "
            f"whole config.json of a causal language model; give the one that its checkpoint came with."
        )
