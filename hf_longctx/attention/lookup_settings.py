"""Settings that methods share which look tokens up."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from ..near import did_you_mean


def check_lookup(method: Any, choices: Mapping[str, Collection[str | None]]) -> None:
    """ValueError for settings that no look-up can have.

    Args:
        method: With `n_global`, `n_local`, `top_k` and `read_at`.
        choices: What may be chosen, for each of its settings that are a choice; None may be one.
    """
    for field, known in choices.items():
        value = getattr(method, field)
        if value not in known:
            names = [name for name in known if name is not None]
            none = " or None" if None in known else ""
            hint = did_you_mean(value, names)
            raise ValueError(f"{field}={value!r}: no such choice. {hint}There are: {', '.join(names)}{none}.")
    n_local, read_at = method.n_local, method.read_at
    if method.n_global < 0:
        raise ValueError(f"n_global={method.n_global}: expected 0 or more.")
    if n_local is not None and n_local < 1:
        kind = type(method).__name__
        raise ValueError(f"n_local={n_local}: {kind} needs a window of at least 1 token, the query's own.")
    if method.top_k < 1:
        raise ValueError(f"top_k={method.top_k}: expected at least 1. Without look-ups this is LMInfinite.")
    if read_at is not None and not 1 <= read_at <= (n_local or read_at):
        raise ValueError(
            f"read_at={read_at}: expected a distance from 1 to n_local={n_local}, which the model was trained to "
            f"read. None is half of n_local."
        )


def check_margin(margin: float, gate: str | None) -> None:
    """ValueError for a gate's margin that is no distance, or that no gate reads."""
    if not math.isfinite(margin):
        raise ValueError(
            f"gate_margin={margin}: expected a finite number of nats. For all found tokens to count, take gate=None; "
            f"for none, LMInfinite."
        )
    if margin and gate != "score":
        raise ValueError(
            f"gate_margin={margin}: only gate='score' has a margin, and gate is {gate!r}. Leave out gate_margin."
        )


def on_host(module: Any, wanted: bool) -> int:
    """How many layers, from this attention layer to the last, keep what is looked up in host memory."""
    layers = getattr(getattr(module, "config", None), "num_hidden_layers", 0)
    return max(layers - module.layer_idx, 1) if wanted else 0


def half_of(n_local: int) -> int:
    """The distance at which found tokens are read by default: at the end of the trained length a model hardly reads."""
    return max(n_local // 2, 1)
