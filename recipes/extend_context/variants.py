"""What `--variant` changes: variants of a config by their names, several of them joined by +."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# settings whose fields belong together: a variant gives all of them
WHOLE = ("positions", "mix", "pose", "distil", "rehearsal")
Place = tuple[str, ...]  # a setting, or a field of one


def joined(config: Mapping[str, Any], variant: str, variants: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The config with what the variants change.

    Raises:
        ValueError: The file has no such variant, or two of them change a setting in different ways.
    """
    changed: dict[Place, tuple[str, Any]] = {}
    for name in variant.split("+"):
        if name not in variants:
            raise ValueError(f"--variant {variant}: {file} has no {name}; it has {', '.join(variants) or 'none'}.")
        for place, value in settings_of(variants[name]):
            other, was = changed.setdefault(place, (name, value))
            if was != value:
                raise ValueError(
                    f"--variant {variant}: {other} sets {': '.join(place)} to {was}, and {name} to {value}. "
                    f"Leave one of them out."
                )
    found = dict(config)
    for (key, *field), (_, value) in changed.items():
        found[key] = found[key] | {field[0]: value} if field else value
    return found


def settings_of(variant: Mapping[str, Any]) -> Iterator[tuple[Place, Any]]:
    """Where a variant changes something, and to what."""
    for key, value in variant.items():
        if key in WHOLE or not isinstance(value, dict):
            yield (key,), value
        else:
            yield from (((key, field), one) for field, one in value.items())
