"""Applies run-time cures of upstream defects to this process, only when asked, and takes them back in any order."""

from __future__ import annotations

import functools
import importlib
import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .ledger import NOT_RUN, WRONG, Defect, chosen, defect, defects
from .scripts import Seen, present
from .shims import SHIMS, Place

logger = logging.getLogger("hf_longctx")
MARK = "hf_longctx_shim"  # on a wrap: its shim, and what it wraps
_lock = threading.RLock()
_active: list[Shim] = []


@dataclass(eq=False)
class Shim:
    """The cure of one defect in this process. `undo()` takes it back, in any order with others.

    No `Patch`: that is of one model, goes with its copies, and is undone last in, first out.

    Attributes:
        defect: The entry of the ledger.
        active: Whether it is in place.
        skipped: Why it was not applied: the defect is gone, or cannot be shown here. "" where it was.
    """

    defect: Defect
    active: bool = False
    skipped: str = ""

    def undo(self) -> None:
        """Put the stock functions back. Undoing twice changes nothing."""
        with _lock:
            if not self.active:
                return
            self.active = False
            _active.remove(self)
            for place in SHIMS[self.defect.id]:
                owner = _owner(place)
                now = _get(owner, place.name)
                # wraps that are no longer active; one under a wrap of other code passes through
                while (mark := getattr(_plain(now), MARK, None)) is not None and not mark[0].active:
                    now = mark[1]
                _put(owner, place.name, now)


def active() -> list[Shim]:
    """The shims that are in place, oldest first."""
    return list(_active)


def apply(given: str | int, *, checked: bool = True) -> Shim:
    """Cure one defect in this process.

    Args:
        given: Number or name of an entry of kind "shim".
        checked: Run the entry's script first, once a process, and leave out what it does not find.

    Raises:
        ValueError: There is no such entry, or no shim for it.
        NotImplementedError: This version of the package has not what the shim is called in the place of.
    """
    one = defect(given)
    if one.id not in SHIMS:
        raise ValueError(
            f"{one.id} ({one.title}) has no cure at run time: it is of kind {one.kind!r}. Those that have one: "
            f"{', '.join(SHIMS)}."
        )
    shim = Shim(one)
    with _lock:
        # under an active shim of the same place, the script would find nothing
        covered = any(SHIMS[other.defect.id] == SHIMS[one.id] for other in _active)
        found = Seen(WRONG) if covered or not checked else _found(one.id)
        if found.state != WRONG:
            why = "cannot be shown here" if found.state == NOT_RUN else "is not present here"
            shim.skipped = f"{why}: {found.told}" if found.told else why
            logger.info("shim %s left out: the defect %s", one.id, shim.skipped)
            return shim
        # everything is found before anything is changed
        found_places = [(*_found_in(place, one), _function(place)) for place in SHIMS[one.id]]
        for owner, name, stock, function in found_places:
            _put(owner, name, _wrapped(stock, function, shim))
        shim.active = True
        _active.append(shim)
    logger.info("shim %s applied: %s", one.id, one.title)
    return shim


@contextmanager
def applied(given: str | int | Iterable[str | int] | None = None, *, checked: bool = True) -> Iterator[list[Shim]]:
    """Cure defects inside a block, for the whole process, as in `with hf_longctx.upstream.applied(["0002", "0016"])`.

    Args:
        given: Numbers or names of entries of kind "shim", or one of them; all of these by default.
        checked: As of `apply`.

    Yields:
        The shims, those that were left out included.

    Raises:
        ValueError, NotImplementedError: As of `apply`; nothing is then applied.
    """
    shims: list[Shim] = []
    try:
        for one in chosen(SHIMS if given is None else given):
            shims.append(apply(one.id, checked=checked))
        yield shims
    finally:
        for shim in shims:
            shim.undo()


@functools.cache
def _found(number: str) -> Seen:
    return present(defects()[number])


def _owner(place: Place) -> Any:
    module = importlib.import_module(place.module)
    return getattr(module, place.owner) if place.owner else module


def _found_in(place: Place, one: Defect) -> tuple[Any, str, Any]:
    try:
        owner = _owner(place)
        return owner, place.name, _get(owner, place.name)
    except (ImportError, AttributeError, KeyError) as error:
        raise NotImplementedError(
            f"{one.id}: {one.package} {one.version} has no {'.'.join(filter(None, place[:3]))}, which its shim is "
            f"called in the place of. Use a release that hf_longctx is tested with, or report it."
        ) from error


def _function(place: Place) -> Any:
    home, _, name = place.function.rpartition(".")
    return getattr(importlib.import_module(f".shims.{home}", __package__), name)


def _wrapped(stock: Any, function: Any, shim: Shim) -> Any:
    called = _plain(stock)

    @functools.wraps(called)
    def wrap(*args: Any, **kwargs: Any) -> Any:
        return function(called, *args, **kwargs) if shim.active else called(*args, **kwargs)

    setattr(wrap, MARK, (shim, stock))
    return classmethod(wrap) if isinstance(stock, classmethod) else wrap


def _plain(found: Any) -> Any:
    return found.__func__ if isinstance(found, classmethod) else found


def _get(owner: Any, name: str) -> Any:
    return owner[name] if isinstance(owner, dict) else vars(owner)[name]


def _put(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner[name] = value
    else:
        setattr(owner, name, value)
