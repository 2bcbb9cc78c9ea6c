"""A config's `rope_parameters`: which part full-attention layers use, and how its scaling is replaced alone."""

from __future__ import annotations

import copy
import math
from typing import Any

from transformers.configuration_utils import ALLOWED_ATTN_LAYER_TYPES

from ..anatomy import FULL

# the fields that each type of `RopeScaling` takes besides `factor`; all but ntk are types of transformers
FIELDS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "ntk": (),
    "dynamic": (),
    "yarn": (
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
    "longrope": ("original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"),
    "llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}
# what belongs to a kind of scaling; all else (rope_theta, partial_rotary_factor, mrope_section) is the model's own
SCALING = {"rope_type", "type", "factor"}.union(*FIELDS.values())
REPLACEABLE = FIELDS.keys() - {"ntk"}


def is_nested(config: Any) -> bool:
    """Does every kind of layer have an entry of its own (Gemma3)?"""
    return any(isinstance(value, dict) for value in config.rope_parameters.values())


def full_entry(config: Any) -> dict[str, Any]:
    """A copy of the `rope_parameters` that full-attention layers use."""
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        raise ValueError(
            f"{type(config).__name__}: no rope_parameters. Looked for the rotary settings of a causal language model "
            f"with RoPE, such as Llama, Qwen or Gemma."
        )
    if is_nested(config):
        kinds = getattr(config, "_rope_type_labels", None) or getattr(config, "layer_types", None) or ()
        known = {*kinds, *ALLOWED_ATTN_LAYER_TYPES} if kinds else ()  # a small model may lack a kind of its family
        unknown = [key for key, value in parameters.items() if isinstance(value, dict) and key not in known]
        if unknown:
            there = f"are of the kinds {', '.join(sorted(set(kinds)))}" if kinds else "have no kinds (layer_types)"
            raise ValueError(
                f"{type(config).__name__}: its rope_parameters have an entry for {unknown[0]!r}, and its layers "
                f"{there}. transformers would ignore it; correct the config."
            )
    entry = parameters.get(FULL) if is_nested(config) else parameters
    if not entry or entry.get("rope_theta") is None:
        raise ValueError(
            f"{type(config).__name__}: its rope_parameters have no {FULL!r} entry with a rope_theta (there are: "
            f"{', '.join(parameters)}), so there is nothing to scale. Set rope_theta to the base the model was "
            f"trained with."
        )
    theta = entry["rope_theta"]
    if type(theta) not in (int, float) or not 1 < theta < math.inf:
        raise ValueError(
            f"{type(config).__name__}: rope_theta={theta!r} in its rope_parameters: expected a number above 1."
        )
    return copy.deepcopy(entry)


def rotary_dim(config: Any, entry: dict[str, Any]) -> int:
    """How many dims of a head are rotated, computed as transformers does."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head_dim * entry.get("partial_rotary_factor", 1.0))


def frequencies(config: Any, entry: dict[str, Any]) -> list[float]:
    """The unscaled frequencies theta^(-2j/d), highest first."""
    dim = rotary_dim(config, entry)
    return [float(entry["rope_theta"]) ** (-2 * j / dim) for j in range(dim // 2)]


def with_entry(config: Any, changes: dict[str, Any]) -> Any:
    """A new config whose full-attention layers have `changes` for their scaling; its constructor validates them.

    `from_pretrained(rope_parameters=...)` replaces instead, and checks nothing.
    """
    entry = {key: value for key, value in full_entry(config).items() if key not in SCALING}
    entry.update(changes)
    parameters = copy.deepcopy(config.rope_parameters)
    fields = config.to_dict()
    fields.pop("hf_longctx", None)
    fields["rope_parameters"] = {**parameters, FULL: entry} if is_nested(config) else entry
    return type(config)(**fields)


def readable_length(config: Any) -> int | None:
    """The tokens that a config says the model reads: the trained ones, or `factor` times the original ones."""
    trained: int | None = getattr(config, "max_position_embeddings", None)
    try:
        entry = full_entry(config)
    except ValueError:
        return trained
    original, factor = entry.get("original_max_position_embeddings") or trained, entry.get("factor") or 1
    return None if trained is None or original is None else max(trained, int(original * factor))


def moving_types(parameters: dict[str, Any] | None) -> list[str]:
    """The rope types among `parameters` whose frequencies change with the length read.

    A longrope whose short and long factors are equal has one table only, and stays.
    """
    entries = [value for value in (parameters or {}).values() if isinstance(value, dict)] or [parameters or {}]
    found = set()
    for entry in entries:
        kind = str(entry.get("rope_type", "default"))
        if "dynamic" in kind or (kind == "longrope" and entry.get("short_factor") != entry.get("long_factor")):
            found.add(kind)
    return sorted(found)


def refuse_moving_frequencies(method: object, rope_parameters: dict[str, Any] | None) -> None:
    """ValueError for frequencies that change with the length read (dynamic, longrope with two tables)."""
    moving = moving_types(rope_parameters)
    if moving:
        raise ValueError(
            f"rope_type={moving[0]!r} changes its frequencies with the length read, so cached keys cannot be "
            f"re-positioned. {type(method).__name__} needs no scaling beyond its window: use the model's original "
            f"rope_parameters."
        )
