"""Which methods a PEFT adapter was trained under, and whether a base may carry it beside its other adapters.

One base has one set of methods, and each adapter on it must have been trained under these, or under none where the
methods are the user's: applied by hand, or saved in the base's own config. So an adapter never changes the outputs of
the others, and `set_adapter`, rows of several adapters in one batch and weighted sums of them give what they would give
alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..anatomy import find_decoder
from ..hub.adapter import read_entry
from ..method import KEY, SCHEMA_VERSION, LongContextMethod
from ..patch import applied, unwrap


# -- the entry ---------------------------------------------------------------------------------------------------------
def entry_of(model: Any) -> dict[str, Any] | None:
    """The entry of an adapter on `model`: every method that the base carries, and the rotary settings they gave."""
    methods = _carried(model)
    if not methods:
        return None
    entry: dict[str, Any] = {
        "version": SCHEMA_VERSION,
        "methods": [{**m.spec(), **({"native": True} if m.native else {})} for m in methods],
    }
    if any(m.native for m in methods):
        # a base that was saved with native methods has no patch; these settings identify it
        config: Any = applied(model)[0].model.config
        entry["rope_parameters"] = config.rope_parameters
    return entry


# -- may it come -------------------------------------------------------------------------------------------------------
def adopt_methods(model: Any, config: Any, adapter: str, others: Mapping[str, Any]) -> None:
    """Let an adapter onto `model`, which gets the methods of the adapter's config if it has none.

    Args:
        model: The base, or a model around it.
        config: The adapter's PEFT config, with its entry in `vars(config)[KEY]`: None in a file without one, and
            missing for a new adapter, which will be trained under the methods of the base.
        adapter: Its name.
        others: The configs of the adapters that stay beside it, by name.

    Raises:
        ValueError: The base or one of the others would be read under methods that are not its own. Nothing is changed.
    """
    differing = _differing(model, config, adapter)
    if differing is None:
        return
    wanted, have = differing
    if have:
        remedy = (
            "Load it onto a base model of its own."
            if others
            else "Undo these first (hf_longctx.undo(model)), or load the adapter onto the base model without them."
        )
        raise ValueError(
            f"the adapter {adapter!r} was trained under {_names(wanted)} and the model carries {_names(have)}. {remedy}"
        )
    entry = vars(config)[KEY]
    decoder: Any = find_decoder(unwrap(model))
    if changed := [name for name, other in others.items() if not _same(vars(other).get(KEY), entry, decoder.config)]:
        by_hand = " and ".join(f"{method!r}.apply(model)" for method in wanted)
        listed = ", ".join(map(repr, changed)) + (" is" if len(changed) == 1 else " are")
        raise ValueError(
            f"the adapter {adapter!r} was trained under {_names(wanted)}, and {listed} on the same base without: a "
            f"base carries methods for all its adapters, and would give other answers with {changed[0]!r}. Load "
            f"{adapter!r} onto a base model of its own. If all are to run with the method, apply it yourself first: "
            f"{by_hand}."
        )
    with as_before_on_failure(model):
        for method in wanted:
            method.apply(model).adapter = adapter


def check_swap(model: Any, config: Any, adapter: str) -> None:
    """ValueError if weights that replace an adapter's were trained under other methods than those of `model`.

    A swap applies no methods: the model may be compiled, and other adapters may be on it.
    """
    differing = _differing(model, config, adapter)
    if differing is not None:
        wanted, have = differing
        raise ValueError(
            f"the weights that are to take the place of the adapter {adapter!r} were trained under {_names(wanted)} "
            f"and the model carries {_names(have)}, which a swap does not change. Load them onto a base model of "
            f"their own, with PeftModel.from_pretrained."
        )


def _differing(model: Any, config: Any, adapter: str) -> tuple[list[LongContextMethod], list[LongContextMethod]] | None:
    """The methods that an adapter's entry names and those that the model carries; None if they are the same."""
    entry = vars(config).get(KEY)
    if entry is None:
        if KEY in vars(config):
            _check_plain(model, adapter)
        return None
    wanted, have = read_entry(entry), _carried(model)
    decoder_config: Any = find_decoder(unwrap(model)).config
    if "rope_parameters" in entry and decoder_config.rope_parameters == entry["rope_parameters"]:
        wanted, have = ([m for m in methods if not m.native] for methods in (wanted, have))
    same = [m.resolve(decoder_config) for m in have] == [m.resolve(decoder_config) for m in wanted]
    return None if same else (wanted, have)


def _check_plain(model: Any, adapter: str) -> None:
    """ValueError if another adapter has brought methods that this one was not trained under."""
    brought = [patch for patch in applied(model) if patch.adapter is not None]
    if brought:
        raise ValueError(
            f"the adapter {adapter!r} was saved without a method, and the model carries "
            f"{_names([patch.method for patch in brought])}, which came with the adapter {brought[0].adapter!r}. Load "
            f"it onto a base model of its own. If it is to run with the method all the same, make that your own "
            f"choice: hf_longctx.undo(model), and apply the method by hand."
        )


def _carried(model: Any) -> list[LongContextMethod]:
    """The methods on a model, without a prefix that it shares at the moment."""
    return [patch.method for patch in applied(model) if isinstance(patch.method, LongContextMethod)]


def _same(entry: Any, other: Any, config: Any) -> bool:
    one, two = ([m.resolve(config) for m in read_entry(e)] if e is not None else [] for e in (entry, other))
    return one == two


def _names(methods: list[LongContextMethod]) -> str:
    return " and ".join(map(repr, methods)) or "no method"


# -- nothing stays after a failure -------------------------------------------------------------------------------------
@contextmanager
def as_before_on_failure(model: Any) -> Iterator[None]:
    """Undo the methods that were applied inside if the block raises, e.g. when an adapter's weights cannot be read."""
    before = applied(model) if isinstance(model, nn.Module) else []
    try:
        yield
    except BaseException:
        if isinstance(model, nn.Module):
            for patch in reversed(applied(model)[len(before) :]):
                patch.undo()
        raise
