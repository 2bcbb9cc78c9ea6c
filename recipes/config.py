"""What recipes share that read a `config.yaml`: its variants, joined by +, and the names that it may have."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Place = tuple[str, ...]  # a setting, with the sections that it stands in


def read_variant(path: Path, variant: str | None, whole: Collection[str] = ()) -> dict[str, Any]:
    """The settings of a file with what a variant changes, or several that are joined by +, and with its name in `out`.

    Args:
        path: A file of settings; those of `variants` are its variants, by their names.
        variant: None: the settings as they are.
        whole: Mappings that a variant replaces, not the single fields of them: what belongs together.

    Raises:
        ValueError: The file has no such variant, or two of them change a setting in different ways.
    """
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    variants = config.pop("variants", {})
    if variant is None:
        return config
    return joined(config, variant, variants, path.name, whole) | {"out": f"{config['out']}-{variant}"}


def variants_of(path: Path) -> dict[str, Any]:
    """What each variant of a file changes, by its name."""
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")).get("variants", {})
    return found


def joined(
    config: dict[str, Any], variant: str, variants: Mapping[str, Any], file: str, whole: Collection[str] = ()
) -> dict[str, Any]:
    """See `read_variant`."""
    found, changed = config, dict[Place, tuple[str, Any]]()
    for name in variant.split("+"):
        if name not in variants:
            raise ValueError(f"--variant {variant}: {file} has no {name}; it has {', '.join(variants) or 'none'}.")
        for place, value in _places(config, variants[name], whole):
            for there, (other, was) in changed.items():
                shorter = min(len(place), len(there))  # one may change a section, and another a setting in it
                if place[:shorter] == there[:shorter] and (place, value) != (there, was):
                    said = f"{': '.join(place)} to {value}" if place != there else f"to {value}"
                    raise ValueError(
                        f"--variant {variant}: {other} sets {': '.join(there)} to {was}, and {name} {said}. Leave one "
                        f"of them out."
                    )
            changed[place] = name, value
        found = merged(found, variants[name], whole)
    return found


def merged(config: Mapping[str, Any], changes: Mapping[str, Any], whole: Collection[str] = ()) -> dict[str, Any]:
    """The settings with changes in their sections; for `whole` see `read_variant`."""
    found = dict(config)
    for key, value in changes.items():
        found[key] = merged(found[key], value, whole) if _in_section(found, key, value, whole) else value
    return found


def _places(
    config: Mapping[str, Any], changes: Mapping[str, Any], whole: Collection[str]
) -> Iterator[tuple[Place, Any]]:
    """Where the changes put something, and what."""
    for key, value in changes.items():
        if _in_section(config, key, value, whole):
            yield from (((key, *place), one) for place, one in _places(config[key], value, whole))
        else:
            yield (key,), value


def _in_section(config: Mapping[str, Any], key: str, value: Any, whole: Collection[str]) -> bool:
    return key not in whole and isinstance(value, Mapping) and isinstance(config.get(key), Mapping)


def check_keys(config: dict[str, Any], known: Collection[str]) -> None:
    """ValueError unless a recipe's settings are exactly the `known` ones, each of which its config.yaml explains."""
    if unknown := sorted(set(config) - set(known)):
        raise ValueError(f"{', '.join(unknown)}: not settings of this recipe, which are {', '.join(sorted(known))}.")
    if missing := sorted(set(known) - set(config)):
        raise ValueError(f"the config lacks {', '.join(missing)}. config.yaml says what each is.")
