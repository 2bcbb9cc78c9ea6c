"""Whether a result is one of this checkpoint: the same model, with the same settings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..tiers import entry_of, procedures_of
from .evidence import Evidence


def carried_by(folder: Path) -> list[dict[str, Any]]:
    """The methods and procedures that a checkpoint is loaded with, as they are saved."""
    entry = entry_of(folder) or {}
    return [
        {k: v for k, v in one.items() if k != "native"} for one in (*entry.get("methods", []), *procedures_of(folder))
    ]


def refuse_other_model(found: Evidence, bases: Sequence[str], names: Sequence[str]) -> None:
    """ValueError unless a result names the model by one of `names`, or one of its `bases` with a method on it.

    What a name says of quantisation and dtype, after a comma or in brackets, and its revision make no difference.
    """
    said = found.data["model"]
    on_base = found.method is not None or not found.settings  # else the base was measured as it is
    if any(_same(said, name) for name in (*names, *(bases if on_base else ()))):
        return
    known = f"made from {bases[0]!r}" if bases else "and which model it was made from is not known"
    raise ValueError(
        f"{found.source!r} has results of {said!r}; this checkpoint is {names[0]!r}, {known}. Give the results of this "
        f"checkpoint, or say with base_model (--base-model) which model it was made from."
    )


def refuse_other_settings(found: Evidence, folder: Path) -> None:
    """ValueError where a result says which method was measured, and the checkpoint has another one.

    Files without `settings` say nothing of it, and a card tells that.
    """
    if not found.settings:
        return
    carried, method = carried_by(folder), found.method
    todo = "Measure this checkpoint, or give the results of the same settings."
    if method is None:
        if carried and "as loaded" not in (found.settings.get("configurations") or []):
            raise ValueError(
                f"{found.source!r} has results of the model as it is; this checkpoint has {_named(carried)}. {todo}"
            )
        return
    from ...registry import from_spec

    measured = from_spec(method)
    if getattr(measured, "native", False) and not carried:
        if different := _differing(measured, folder):
            raise ValueError(
                f"{found.source!r} has results of {measured!r}; in this checkpoint's rope_parameters, {different}. "
                f"{todo}"
            )
        return
    if [from_spec(one) for one in carried] != [measured]:
        there = _named(carried) or "no method"
        raise ValueError(f"{found.source!r} has results of {measured!r}; this checkpoint has {there}. {todo}")


def _named(carried: Sequence[Mapping[str, Any]]) -> str:
    from ...registry import from_spec

    return ", ".join(repr(from_spec(dict(one))) for one in carried)


def _differing(method: Any, folder: Path) -> str:
    """What a native method would have written otherwise; ntk is left out, which a config does not tell from a base."""
    from transformers import AutoConfig

    from ...rope.parameters import full_entry

    config = AutoConfig.from_pretrained(folder).get_text_config()
    entry = full_entry(config)
    unscaled = {"rope_type": "default", "rope_theta": entry["rope_theta"]}
    changes = method.scaling(config, {**unscaled, **{k: v for k, v in entry.items() if "original" in k}})
    if changes["rope_type"] == "default":
        return ""
    return next((f"{k} is {entry.get(k)!r}, not {v!r}" for k, v in changes.items() if not _equal(entry.get(k), v)), "")


def _equal(there: Any, expected: Any) -> bool:
    if isinstance(there, list) and isinstance(expected, list):
        return len(there) == len(expected) and all(map(_equal, there, expected))
    numbers = isinstance(there, int | float) and isinstance(expected, int | float)
    return math.isclose(there, expected, rel_tol=1e-6) if numbers else bool(there == expected)


def _same(said: str, name: str) -> bool:
    ours, theirs = _plain(name), _plain(said)
    if "/" in ours and "/" in theirs:
        return ours == theirs
    return bool(ours) and ours.rpartition("/")[2] == theirs.rpartition("/")[2]


def _plain(name: str) -> str:
    return re.split(r" \(|,|@", name.strip())[0].strip().strip("/").lower()
