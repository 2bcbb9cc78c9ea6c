"""Reading with fewer look-ups: a long text in time in proportion to its length, before a question about it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ..patch import applied
from ..settings import LOOK_UP_LAST
from .state import STATE, DecoderState


def check_looks_up(model: Any, asked: str = "look_up=False", patches: Iterable[Any] | None = None) -> None:
    """ValueError unless a method on `model` looks tokens up; `asked` is what was given, `patches` as below."""
    if not _states(model, patches):
        methods = ", ".join(repr(patch.method) for patch in applied(model)) or "no method"
        raise ValueError(
            f"{asked}: the model carries {methods}, which looks nothing up anyway. Leave it out, or apply "
            f"CodeLookup, or LMInfinite with top_k."
        )


def without_look_ups(model: Any, patches: Iterable[Any] | None = None) -> AbstractContextManager[None]:
    """Inside the block queries see what their method shows them without looking anything up; the cache keeps all.

    `patches` are those of the model now, where they are known: to look for them takes as long as a layer or two.
    """
    return looking_up_from(model, sys.maxsize, patches)


@contextmanager
def looking_up_from(model: Any, column: int | None, patches: Iterable[Any] | None = None) -> Iterator[None]:
    """Inside the block tokens look up from this column of their text on, padding counted. None: as outside of it."""
    states = [] if column is None else _states(model, patches)
    before = [state.look_up_from for state in states]
    for state in states:
        state.look_up_from = column
    try:
        yield
    finally:
        for state, outside in zip(states, before, strict=True):
            state.look_up_from = outside


def first_to_look_up(model: Any, generation_config: Any, ids_BL: Any, model_kwargs: dict[str, Any]) -> int | None:
    """The first column of a prompt of `generate` that looks tokens up. None: all of them do.

    ValueError for a wrong `look_up_last`, before anything is read.
    """
    last = getattr(generation_config, LOOK_UP_LAST, None)
    if last is None:
        return None
    if type(last) is not int or last < 1:
        raise ValueError(
            f"{LOOK_UP_LAST}={last!r}: expected a whole number of tokens, at least 1, counted from the prompt's end. "
            f"Leave it out to let all of them look tokens up."
        )
    check_looks_up(model, f"{LOOK_UP_LAST}={last}")
    if generation_config.use_cache is False:
        raise ValueError(
            f"{LOOK_UP_LAST}={last}: with use_cache=False the prompt is read again for every token that is written. "
            f"Leave out one of them."
        )
    mask, embeds = model_kwargs.get("attention_mask"), model_kwargs.get("inputs_embeds")
    given = (mask if getattr(mask, "ndim", 0) == 2 else None, embeds, ids_BL)
    columns = next(x.shape[1] for x in given if x is not None)  # the mask's are those of the whole text
    return max(int(columns) - last, 0)


def _states(model: Any, patches: Iterable[Any] | None = None) -> list[DecoderState]:
    found = (vars(patch.model).get(STATE) for patch in (applied(model) if patches is None else patches))
    return [state for state in found if state is not None and state.method.looks_up]
