"""What a config says about a model's size, read from the model it builds on the meta device: no weight is touched."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

from ..anatomy import BESIDE, FULL, attention_layers, decoder_layers, find_decoder, layer_type
from ..hub.adapter import adapter_settings
from ..hub.gguf import read_gguf_config
from ..hub.resolve import EXAMPLE_MODEL, find, first_line, hub_problem, is_gguf, not_found
from ..rope.parameters import readable_length
from .held import Held, held_by

NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
COMPOSITE = ("hidden_size", "num_hidden_layers")  # nested text configs leave out what is their class's default


@dataclass(frozen=True)
class Layer:
    """One attention layer as it reads.

    Args:
        heads, kv_heads, head_dim: Of its queries, and of its keys and values.
        kv_elements: Of a token's key and value in its cache; 0 where it reads another layer's.
        expansion: Parameters by which every cached token becomes the keys and values of all heads in each forward
            (latent attention, MLA); 0 where it is cached as it is read.
        kept, span, top_k, on_host, twice, shortlist: As `method.Footprint` says.
        code_bytes: Of a token's code, by which it is looked up; 0: by its key.
        patched: Whether a method of hf_longctx reads it: keys un-rotated, no mask; else it is stock.
    """

    heads: int
    kv_heads: int
    head_dim: int
    kv_elements: int
    expansion: int = 0
    kept: int | None = None
    span: int | None = None
    patched: bool = False
    top_k: int = 0
    on_host: bool = False
    twice: int | None = None
    code_bytes: int = 0
    shortlist: int = 0

    @property
    def handed(self) -> int | None:
        """Tokens whose keys attention gets from the cache at most, before those that it looks up. None: all."""
        return self.kept if self.twice is None else self.twice


@dataclass(frozen=True)
class Shape:
    """A model's sizes.

    Args:
        active: The parameters that one token's matmuls in the layers use, experts by share.
        lm_head: Parameters of the output projection, tied or not.
        layers: Attention layers of one kind, and how many there are.
        each: All attention layers in order, with the place of the module in `attention_layers`. One that is used at
            several depths is there once for each.
        loose_elements: What each token adds to caches beside the keys and values of `layers`.
        state_elements, state_bytes: Of a row's recurrent and convolution states, in the model's dtype and in their own.
        caveat: What is not known of the cache; "" if all of it is.
    """

    parameters: int
    active: float
    lm_head: int
    hidden: int
    mlp: int
    vocab: int
    n_layers: int
    trained: int | None
    implementation: str
    layers: tuple[tuple[Layer, int], ...]
    each: tuple[tuple[int, Layer], ...]
    loose_elements: int = 0
    state_elements: int = 0
    state_bytes: int = 0
    caveat: str = ""

    @property
    def widest(self) -> Layer:
        """The layer with most query dims."""
        return max((layer for layer, _ in self.layers), key=lambda layer: layer.heads * layer.head_dim)

    @property
    def span(self) -> int | None:
        """The shortest span of the layers that a method reads. None: each of them sees everything."""
        return min((layer.span for layer, _ in self.layers if layer.patched and layer.span is not None), default=None)

    @property
    def bounded(self) -> bool:
        """Whether no layer that a method reads keeps everything, and there are such."""
        patched = [layer for layer, _ in self.layers if layer.patched]
        return bool(patched) and all(layer.kept is not None for layer in patched)


def read_config(model: str | os.PathLike[str] | PreTrainedConfig) -> tuple[PreTrainedConfig, str]:
    """The config and the name to quote: of a folder, a config.json, a Hub id, a .gguf file or the examples' model."""
    if isinstance(model, PreTrainedConfig):
        return model, model._name_or_path or type(model).__name__
    name = os.fspath(model)
    path = Path(name).expanduser()
    if path.suffix.lower() == ".json" and path.is_file():
        location, source = str(path), path.name
    else:
        checkpoint = find(model)
        location, source = checkpoint.location, checkpoint.source
        adapter = adapter_settings(location, {}) if Path(location).is_dir() else None
        if adapter is not None:
            raise ValueError(
                f"{name!r} holds a PEFT adapter, and no config of a model. Give the folder or Hub id of its base "
                f"model, {adapter['base_model_name_or_path']!r}."
            )
        if is_gguf(location):  # its header has all that is needed; its weights are not converted for a plan
            config, raw = read_gguf_config(location)
            _check_fields(name, raw, config)
            return config, source
        # as in `load`: an unreachable Hub is tried for a minute before it is told
        if not Path(location).is_dir() and (problem := hub_problem(location)):
            raise OSError(not_found(location, problem))
    try:
        raw, _ = PreTrainedConfig.get_config_dict(location)
        config = AutoConfig.from_pretrained(location)
    except Exception as error:  # transformers' own are many: JSON, validation of fields, unknown types
        raise ValueError(
            f"{name!r}: its config cannot be read ({first_line(error)}). Expected the config.json of a causal language "
            f"model that transformers knows; give such a folder or file, a Hub id, or {EXAMPLE_MODEL!r}."
        ) from error
    _check_fields(name, raw, config)
    return config, source


def build(config: PreTrainedConfig) -> Any:
    """The model on the meta device: modules and shapes, no memory. ValueError unless it is a causal LM with RoPE."""
    problem: Exception | None = None
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) not in auto._model_mapping:
            continue
        try:
            with torch.device("meta"):
                model = auto.from_config(config)
            find_decoder(model)
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
    decoder: Any = find_decoder(model)
    config = decoder.config
    modules = attention_layers(decoder)
    layers = list(enumerate(stock_layer(module, config) for module in modules))
    more: dict[str, Any] = {}
    try:
        held = held_by(decoder)
    except Exception as error:  # a forward on the meta device stops wherever a model looks at values
        more["caveat"] = (
            f"What {type(model).__name__} caches could not be found out without its weights "
            f"({first_line(error)}): {_guess(decoder)}."
        )
    else:
        layers, more = _as_held(modules, layers, held)
    share, mlp = _experts(config)
    every = decoder_layers(decoder)
    active = sum(
        p.numel() * (share if ".experts." in f".{name}." else 1.0)
        for layer in every
        for name, p in layer.named_parameters()
        if p.dim() >= 2
    )
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        active=active,
        lm_head=config.vocab_size * config.hidden_size,
        hidden=config.hidden_size,
        mlp=mlp,
        vocab=config.vocab_size,
        n_layers=len(every),
        trained=readable_length(config),
        implementation=str(config._attn_implementation),
        layers=tuple(Counter(layer for _, layer in layers).items()),
        each=tuple(layers),
        **more,
    )


def _as_held(
    modules: list[Any], layers: list[tuple[int, Layer]], held: list[Held]
) -> tuple[list[tuple[int, Layer]], dict[str, int]]:
    """The layers with what their caches hold, and the sums of what lies elsewhere."""
    indices = [module.layer_idx for module in modules]
    keyed = [index for index, one in enumerate(held[:-1]) if one.token_elements]
    if len(set(indices)) < len(indices):  # modules at several depths, each of which has a cache of its own
        found, owned = [(0, _as_cached(layers[0][1], held[index])) for index in keyed], set(keyed)
    else:
        owned = set(indices)
        nothing = Held()  # those that read another layer's keys have an index past the end, or an empty cache
        own = [held[index] if index < len(held) - 1 else nothing for index in indices]
        found = [(place, _as_cached(layer, one)) for (place, layer), one in zip(layers, own, strict=True)]
    loose = sum(one.grows for one in held)
    loose += sum(one.token_elements for index, one in enumerate(held) if index not in owned)
    elements, n_bytes = sum(one.elements for one in held), sum(one.n_bytes for one in held)
    return found, {"loose_elements": loose, "state_elements": elements, "state_bytes": n_bytes}


def _as_cached(layer: Layer, held: Held) -> Layer:
    """A layer whose cache is found to hold this."""
    size = held.token_elements
    expands = 0 < size < layer.heads * layer.head_dim  # else keys and values are cached when they are made
    kept = held.kept if size else layer.kept
    return dataclasses.replace(layer, kv_elements=size, kept=kept, expansion=layer.expansion if expands else 0)


def _guess(decoder: Any) -> str:
    """What is counted where a cache could not be filled."""
    others = len(decoder_layers(decoder)) - len(attention_layers(decoder))
    plain = "the keys and values of its attention layers are counted as their projections have them"
    if others <= 0:
        return f"{plain}, and nothing else"
    return f"{plain}; the states of {others} other layers are not counted, so it needs more than is said here"


def stock_layer(module: Any, config: Any) -> Layer:
    """An attention module of the stock model; sliding and chunked ones keep and see their window.

    `config` is its decoder's, for modules that have none of their own.
    """
    own = getattr(module, "config", None)
    config = config if own is None else own
    window = None
    if layer_type(module) not in (FULL, BESIDE):
        window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    kept = None if window is None else window - 1
    heads = getattr(module, "num_heads", None) or config.num_attention_heads
    latent = getattr(module, "kv_b_proj", None)
    if latent is not None:
        size = latent.in_features + module.qk_rope_head_dim
        expansion = latent.weight.numel()
        return Layer(heads, heads, module.qk_head_dim, size, expansion, kept=kept, span=window)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(module, "head_dim", None) or config.hidden_size // heads
    keys = getattr(module, "k_proj", None)
    if keys is not None:  # layers of one model may differ (Gemma 4)
        kv_heads = keys.out_features // head_dim
    size = 2 * kv_heads * head_dim
    values = getattr(module, "v_proj", None)
    if keys is not None and values is not None:
        size = keys.out_features + values.out_features
    if getattr(module, "is_kv_shared_layer", False):
        size = 0
    return Layer(heads, kv_heads, head_dim, size, kept=kept, span=window)


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
    """ValueError for missing sizes, which transformers fills in with those of some other model."""
    text = config.get_text_config(decoder=True)
    entry = raw
    if text is not config:
        entry = next((value for value in raw.values() if isinstance(value, dict) and "hidden_size" in value), raw)
    spelled = getattr(text, "attribute_map", {})
    needed = NEEDED if text is config else COMPOSITE
    missing = [field for field in needed if field not in entry and spelled.get(field, field) not in entry]
    foreign = [field for field in missing if not hasattr(text, field)]
    if foreign:  # not forgotten: models of this kind have no such thing
        raise ValueError(
            f"{name!r}: {type(text).__name__} has no {', '.join(foreign)}. Expected a causal language model with "
            f"attention and RoPE, such as Llama, Qwen or Gemma."
        )
    if missing:
        raise ValueError(
            f"{name!r}: its config lacks {', '.join(missing)} (it has: {json.dumps(sorted(entry))}). Expected the "
            f"whole config.json of a causal language model; give the one that its checkpoint came with."
        )
