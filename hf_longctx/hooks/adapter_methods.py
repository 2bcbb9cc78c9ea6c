"""Which methods a PEFT adapter was trained under, and whether a base may carry it beside what is there.

One base has one set of methods, and each adapter on it must have been trained under these, or under none where the
methods are the user's: applied by hand, or saved in the base's own config. So an adapter never changes what the others
say, and `set_adapter`, rows of several adapters in one batch and weighted sums of them are what they would be alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..anatomy import find_decoder
from ..method import KEY, SCHEMA_VERSION, LongContextMethod, from_spec, read_key
from ..patch import Patch, applied, unwrap


# -- the entry ---------------------------------------------------------------------------------------------------------
def entry_of(model: Any) -> dict[str, Any] | None:
    """The entry of an adapter on `model`: every method that the base carries, and the rotary settings they gave."""
    patches = applied(model)
    if not patches:
        return None
    specs = [{**p.method.spec(), **({"native": True} if p.method.native else {})} for p in patches]
    if not any(p.method.native for p in patches):
        return {"version": SCHEMA_VERSION, "methods": specs}
    config: Any = patches[0].model.config
    # a base that was saved with native methods has no patch; by these settings it is known again
    return {"version": SCHEMA_VERSION, "methods": specs, "rope_parameters": config.rope_parameters}


def read_entry(entry: Any) -> list[LongContextMethod]:
    """The methods in an adapter's entry. ValueError says what is wrong with it."""
    specs = entry.get("methods") if isinstance(entry, dict) else None
    if not isinstance(specs, list):
        return read_key(entry)  # raises
    ours = [spec for spec in specs if not (isinstance(spec, dict) and spec.get("native"))]
    read_key({"version": entry.get("version"), "methods": ours})
    return [from_spec({k: v for k, v in spec.items() if k != "native"}) for spec in specs]


# -- may it come -------------------------------------------------------------------------------------------------------
def adopt(model: Any, config: Any, adapter: str, others: Mapping[str, Any]) -> list[Patch]:
    """Let an adapter onto `model`, which gets the methods of the adapter's config if it has none; these are returned.

    Args:
        model: the base, or anything around it.
        config: the adapter's PEFT config, with our entry in `vars(config)[KEY]`: None in a file without one, and not
            there for an adapter that is new, which will be trained under what the base carries.
        adapter: its name.
        others: the configs of the adapters that stay beside it, by name.

    Raises:
        ValueError: the base or one of the others would be read under methods that are not its own. Nothing is changed.
    """
    entry = vars(config).get(KEY)
    if entry is None:
        if KEY in vars(config):
            _check_plain(model, adapter)
        return []
    wanted, have = _unlike(model, entry)
    if wanted == have:
        return []
    if have:
        remedy = (
            "Load it onto a base model of its own."
            if others
            else "Undo these first (hf_longctx.undo(model)), or load the adapter onto the base model without them."
        )
        raise ValueError(
            f"the adapter {adapter!r} was trained under {_names(wanted)} and the model carries {_names(have)}. {remedy}"
        )
    decoder: Any = find_decoder(unwrap(model))
    if changed := [name for name, other in others.items() if not _same(vars(other).get(KEY), entry, decoder.config)]:
        by_hand = " and ".join(f"{method!r}.apply(model)" for method in wanted)
        raise ValueError(
            f"the adapter {adapter!r} was trained under {_names(wanted)}, and {_listed(changed)} on the same base "
            f"without: a base carries methods for all its adapters, and would give other answers with {changed[0]!r}. "
            f"Load {adapter!r} onto a base model of its own. If all are to run with the method, apply it yourself "
            f"first: {by_hand}."
        )
    patches: list[Patch] = []
    with undone_on_failure(patches):
        for method in wanted:
            patches.append(method.apply(model))
            patches[-1].adapter = adapter
    return patches


def check_swap(model: Any, config: Any, adapter: str) -> None:
    """ValueError where weights that take the place of an adapter's were trained under other methods than `model` has.

    Methods do not come with a swap: the model may be compiled, and other adapters may be on it.
    """
    entry = vars(config).get(KEY)
    if entry is None:
        if KEY in vars(config):
            _check_plain(model, adapter)
        return
    wanted, have = _unlike(model, entry)
    if wanted != have:
        raise ValueError(
            f"the weights that are to take the place of the adapter {adapter!r} were trained under {_names(wanted)} "
            f"and the model carries {_names(have)}, which a swap does not change. Load them onto a base model of "
            f"their own, with PeftModel.from_pretrained."
        )


def _check_plain(model: Any, adapter: str) -> None:
    brought = [patch for patch in applied(model) if patch.adapter is not None]
    if brought:
        methods = [patch.method for patch in brought]
        raise ValueError(
            f"the adapter {adapter!r} was saved without a method, and the model carries {_names(methods)}, which came "
            f"with the adapter {brought[0].adapter!r}. Load it onto a base model of its own. If it is to run with the "
            f"method all the same, make that your own choice: hf_longctx.undo(model), and apply the method by hand."
        )


def _unlike(model: Any, entry: Any) -> tuple[list[LongContextMethod], list[LongContextMethod]]:
    """The methods that an entry names and those that the model carries, resolved; equal where nothing is to be done."""
    wanted, have = read_entry(entry), [patch.method for patch in applied(model)]
    config: Any = find_decoder(unwrap(model)).config
    if "rope_parameters" in entry and config.rope_parameters == entry["rope_parameters"]:
        wanted, have = ([m for m in methods if not m.native] for methods in (wanted, have))
    if [m.resolve(config) for m in have] == [m.resolve(config) for m in wanted]:
        return have, have
    return wanted, have


def _same(entry: Any, other: Any, config: Any) -> bool:
    one, two = ([m.resolve(config) for m in read_entry(e)] if e is not None else [] for e in (entry, other))
    return one == two


def _names(methods: list[LongContextMethod]) -> str:
    return " and ".join(map(repr, methods)) or "no method"


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names)) + (" is" if len(names) == 1 else " are")


# -- nothing stays of what failed --------------------------------------------------------------------------------------
@contextmanager
def undone_on_failure(patches: list[Patch]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for patch in reversed(patches):
            patch.undo()
        raise


@contextmanager
def as_before_on_failure(model: Any) -> Iterator[None]:
    """Methods that came inside are undone if the block raises, e.g. where an adapter's weights cannot be read."""
    before = applied(model) if isinstance(model, nn.Module) else []
    try:
        yield
    except BaseException:
        if isinstance(model, nn.Module):
            for patch in reversed(applied(model)[len(before) :]):
                patch.undo()
        raise
