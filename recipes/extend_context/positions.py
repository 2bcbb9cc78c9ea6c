"""How the model counts positions beyond its trained length: native settings, which plain transformers reads."""

from __future__ import annotations

from typing import Any

from hf_longctx import Giraffe, RopeScaling
from hf_longctx.rope.method import RopeMethod
from hf_longctx.rope.parameters import full_entry, rotary_dim, with_entry

TYPES = ("base", "yarn", "dynamic", "giraffe", "stock")


def extended(config: Any, positions: dict[str, Any], length: int) -> Any:
    """A config whose model reads `length` tokens.

    Raises:
        ValueError: The model's rope is scaled already, or a field is not one of the type's.
    """
    fields = dict(positions)
    kind = fields.pop("type", None)
    if kind not in TYPES:
        raise ValueError(f"positions: type: {kind!r}: expected one of {', '.join(TYPES)}.")
    if kind == "stock":
        return config
    if length <= config.max_position_embeddings:
        raise ValueError(
            f"length: {length}: the model reads {config.max_position_embeddings} already. Give a larger length, or "
            f"positions: {{type: stock}}."
        )
    made = method(config, kind, fields).configure(config)
    if kind == "base":
        # the number itself, without the rounding of a factor
        made = with_entry(made, {"rope_type": "default", "rope_theta": float(fields["theta"])})
    made.max_position_embeddings = length
    return made


def method(config: Any, kind: str, fields: dict[str, Any]) -> RopeMethod:
    """The method of the package that changes the rotary frequencies."""
    trained = config.max_position_embeddings
    try:
        if kind == "giraffe":
            return Giraffe(train_length=trained, **fields)
        if kind == "yarn":
            return RopeScaling(type="yarn", original_max_position_embeddings=trained, **fields)
        if kind == "dynamic":
            return RopeScaling(type="dynamic", **fields)
        return base(config, **fields)
    except TypeError as error:
        raise ValueError(f"positions: {kind} does not take these fields: {fields} ({error}).") from error


def base(config: Any, theta: float) -> RopeScaling:
    """NTK's scaling, with the factor that makes `theta` of the model's rope_theta."""
    entry = full_entry(config)
    if theta <= entry["rope_theta"]:
        raise ValueError(f"theta: {theta}: expected more than the model's rope_theta, {entry['rope_theta']}.")
    dim = rotary_dim(config, entry)
    return RopeScaling(type="ntk", factor=(theta / entry["rope_theta"]) ** ((dim - 2) / dim))
