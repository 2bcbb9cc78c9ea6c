"""Reading without looking anything up: a long text in time in proportion to its length, before a question about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..patch import applied
from .state import STATE, DecoderState


def check_looks_up(model: Any) -> None:
    """ValueError unless a method on `model` looks tokens up."""
    if not _states(model):
        methods = ", ".join(repr(patch.method) for patch in applied(model)) or "no method"
        raise ValueError(
            f"look_up=False: the model carries {methods}, which looks nothing up anyway. Leave it out, or apply "
            f"CodeLookup, or LMInfinite with top_k."
        )


@contextmanager
def without_look_ups(model: Any) -> Iterator[None]:
    """Inside the block queries see what their method shows them without looking anything up; the cache keeps all."""
    states = _states(model)
    for state in states:
        state.looking_up = False
    try:
        yield
    finally:
        for state in states:
            state.looking_up = True


def _states(model: Any) -> list[DecoderState]:
    found = (vars(patch.model).get(STATE) for patch in applied(model))
    return [state for state in found if state is not None and state.method.looks_up]
