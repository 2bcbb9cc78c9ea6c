"""Settings that can be written down: frozen values whose fields are JSON types, checked when they are made."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterable
from numbers import Integral
from typing import Any, ClassVar, TypeVar, get_type_hints

from .near import did_you_mean

KEY = "hf_longctx"  # of the entry in a model's config
LOOK_UP_LAST = "look_up_last"  # of a generation config: the tokens of a prompt that look up, counted from its end
# names of hf_longctx's attention in transformers' registries, by the name that stood there before: plain strings, which
# torch.compile takes for constants, and without "flash", by which transformers knows flash attention
ATTENTION_NAMES = {
    base: f"{KEY}:{base.replace('flash_attention_', 'fa')}"
    for base in ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
}
LARGEST = 2**53 - 1  # beyond it JSON readers round, and sums of positions overflow
GUIDANCE = ("Use when", "Cannot", "Costs")

S = TypeVar("S", bound="Settings")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of everything that is set by name and saved with a model.

    Fields hold JSON types only (bool, int, float, str, None, list[...] | None), so that they survive a config file
    unchanged.
    """

    name: ClassVar[str] = ""

    def __new__(cls: type[S], *args: Any, **fields: Any) -> S:
        """Check the names: the constructor's own error names neither the settings nor the nearest one."""
        if args:
            raise TypeError(f"{cls.__name__} takes settings by name only, for example {_example(cls)}.")
        unknown = _unknown(cls, fields)
        if unknown:
            raise TypeError(unknown)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Subclasses check their values after calling this, which checks that they are of the fields' types."""
        _check_fields(type(self), dataclasses.asdict(self))

    @classmethod
    def guidance(cls) -> dict[str, str]:
        """When to use it, what it cannot do and what it costs, in the words of its docstring."""
        paragraphs = [" ".join(lines.split()) for lines in inspect.cleandoc(cls.__doc__ or "").split("\n\n")]
        found = (p.partition(": ") for p in paragraphs)
        return {label: text for label, _, text in found if label in GUIDANCE}

    @classmethod
    def from_fields(cls: type[S], fields: dict[str, Any]) -> S:
        """Build it from saved fields. ValueError where the constructor has a TypeError."""
        _check_fields(cls, fields)
        return cls(**fields)

    def spec(self) -> dict[str, Any]:
        """The name and every field, as they are saved."""
        return {"name": self.name, **dataclasses.asdict(self)}


def read_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Fields from command-line settings such as `n_local=4096`.

    Values are read as JSON (numbers, true, false, null); a value that is not JSON is a string. `none` is null.
    """
    fields: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"{setting!r}: a setting is written key=value, for example n_local=4096.")
        if key.strip() in ("name", *fields):
            raise ValueError(f"{setting!r}: {key.strip()!r} is given already. Give each setting once.")
        try:
            fields[key.strip()] = None if text.strip().lower() == "none" else json.loads(text)
        except json.JSONDecodeError:
            fields[key.strip()] = text.strip()
    return fields


def _example(cls: type[Settings]) -> str:
    first = next(iter(dataclasses.fields(cls)), None)
    return f"{cls.__name__}({f'{first.name}={first.default!r}' if first else ''})"


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether a value is a whole number of at least `least`, of Python or NumPy; a bool is not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def unknown_setting(name: str, known: list[str], fields: Iterable[str]) -> str | None:
    """What to say about a setting that `name` does not have, if there is one among `fields`. It has those `known`."""
    for key in fields:
        if key not in known:
            hint = did_you_mean(key, known)
            return f"{name}: no setting {key!r}. {hint}There are: {', '.join(known) or 'none'}."
    return None


def _unknown(cls: type[Settings], fields: Iterable[str]) -> str | None:
    return unknown_setting(cls.name, [field.name for field in dataclasses.fields(cls)], fields)


def _check_fields(cls: type[Settings], fields: dict[str, Any]) -> None:
    unknown = _unknown(cls, fields)
    if unknown:
        raise ValueError(unknown)
    known = get_type_hints(cls)
    for key, value in fields.items():
        allowed = getattr(known[key], "__args__", (known[key],))
        # bool is an int in Python, and n_local=true is a mistake
        kinds = [getattr(kind, "__origin__", kind) for kind in allowed]  # list of list[float]
        fits = any(type(value) is kind or (kind is float and type(value) is int) for kind in kinds)
        if not fits:
            names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in allowed)
            raise ValueError(f"{cls.name}: {key}={value!r} is {type(value).__name__}, expected {names}.")
        if type(value) is int and abs(value) > LARGEST:
            raise ValueError(f"{cls.name}: {key}={value} is more than {LARGEST}, the largest whole number in JSON.")
