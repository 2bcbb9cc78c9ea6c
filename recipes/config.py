"""What recipes share that read a `config.yaml`: its variants, joined by +, and the names that it may have."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_longctx.near import did_you_mean

Place = tuple[str, ...]  # a setting, with the sections that it stands in
ALIKE = {(str,): "text", (int, float): "a number", (bool,): "true or false", (list,): "a list", (dict,): "settings"}
SAID = {str: "text", int: "a whole number, 1 or more", dict: "settings below it, each on a line of its own"}


def read_yaml(file: Path) -> dict[str, Any]:
    """The settings of a file; ValueError for one that holds none, FileNotFoundError for one that is not there."""
    if not file.is_file():
        raise FileNotFoundError(errno.ENOENT, "No such file. Give a copy of the recipe's config.yaml", str(file))
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file} is not YAML: {' '.join(str(error).split())}. See the recipe's config.yaml."
        ) from error
    if not isinstance(found, dict):
        what = "nothing" if found is None else f"a {type(found).__name__}"
        raise ValueError(f"{file} holds {what}: expected settings, name: value, as in the recipe's config.yaml.")
    return found


def read_variant(path: Path, variant: str | None, whole: Collection[str] = ()) -> dict[str, Any]:
    """The settings of a file with what a variant changes, or several that are joined by +, and with its name in `out`.

    Args:
        path: A file of settings; those of `variants` are its variants, by their names.
        variant: None: the settings as they are.
        whole: Mappings that a variant replaces, not the single fields of them: what belongs together.

    Raises:
        ValueError: The file has no such variant, or two of them change a setting in different ways.
    """
    config = read_yaml(path)
    variants = config.pop("variants", {})
    if variant is None:
        return config
    return joined(config, variant, variants, path.name, whole) | {"out": f"{config['out']}-{variant}"}


def variants_of(path: Path) -> dict[str, Any]:
    """What each variant of a file changes, by its name."""
    found: dict[str, Any] = read_yaml(path).get("variants", {})
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


def check_types(config: Mapping[str, Any], types: Mapping[str, type]) -> None:
    """ValueError for a setting that is of another type, or a number below 1."""
    for name, kind in types.items():
        value = config[name]
        if type(value) is not kind or (kind is int and value < 1):
            raise ValueError(f"{name}: {value!r}: expected {SAID[kind]}. config.yaml says what it is.")


def check_section(config: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """ValueError unless the settings at a place of a config, such as "evaluation: ", are exactly the `known` ones."""
    for name in config:
        if name not in known:
            raise ValueError(
                f"{where}{name}: not a setting of this recipe. {did_you_mean(str(name), list(known))}There are: "
                f"{', '.join(known)}."
            )
    if missing := [name for name in known if name not in config]:
        raise ValueError(f"the config lacks {where}{', '.join(missing)}. config.yaml says what each is.")


def check_training(training: Mapping[str, Any], arguments: type, section: str = "training") -> None:
    """ValueError for what is not a field of TrainingArguments or its like, or a word where that is a number."""
    fields = {field.name: field for field in dataclasses.fields(arguments) if field.init}
    for name, value in training.items():
        if name not in fields:
            hint = did_you_mean(str(name), list(fields))
            raise ValueError(f"{section}: {name}: {arguments.__name__} has no such field. {hint}".rstrip())
        if isinstance(value, str) and type(fields[name].default) in (int, float):
            raise ValueError(
                f"{section}: {name}: {value!r} is text, expected a number. YAML reads 1e-5 as a word, and 1.0e-5 as a "
                f"number."
            )


def check_alike(config: Mapping[str, Any], known: Mapping[str, Any], where: str = "") -> None:
    """ValueError for text, a number, a list or settings where the recipe's own config has something else of these.

    Args:
        config: The settings; null, and those that are not `known`, are left to other checks.
        known: The recipe's own, or a part of them.
        where: The settings around them, for the message.
    """
    for name, own in known.items():
        value = config.get(name)
        expected = next((said for kinds, said in ALIKE.items() if type(own) in kinds), None)
        if value is None or expected is None:
            continue
        if not any(type(own) in kinds and type(value) in kinds for kinds in ALIKE):
            hint = " (YAML reads 1e-5 as a word, and 1.0e-5 as a number)" if type(own) in (int, float) else ""
            raise ValueError(f"{where}{name}: {value!r}: expected {expected}{hint}. config.yaml says what it is.")
        if isinstance(own, dict):
            check_alike(value, own, f"{where}{name}: ")
