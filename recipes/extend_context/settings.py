"""The recipe's settings: read, merged with a variant, and checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from recipes.config import check_keys
from recipes.resuming import fingerprints

HERE = Path(__file__).parent
DEFAULT = HERE / "config.yaml"
KINDS = ("long", "short", "retrieval")


def read_config(path: Path, variant: str | None = None) -> dict[str, Any]:
    """The settings of a file, with what one of its variants changes."""
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    variants = given.pop("variants", {})
    if variant is not None:
        if variant not in variants:
            raise ValueError(f"--variant {variant}: {path.name} has {', '.join(variants) or 'none'}.")
        for key, value in variants[variant].items():
            whole = key in ("positions", "mix") or not isinstance(value, dict)
            given[key] = value if whole else given[key] | value
        given["out"] = f"{given['out']}-{variant}"
    return checked(given)


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """The settings as they are; ValueError for what cannot work."""
    known = set(yaml.safe_load(DEFAULT.read_text(encoding="utf-8"))) - {"variants"}
    check_keys(config, known)
    mix = config["mix"]
    if set(mix) - set(KINDS) or any(share < 0 for share in mix.values()) or abs(sum(mix.values()) - 1) > 1e-6:
        raise ValueError(f"mix: {mix}: expected shares of {', '.join(KINDS)} that add up to 1.")
    batch, step = config["batch_tokens"], config["tokens_per_step"]
    longest = max(length for _, length in shares_of(config))
    if step < longest or batch < longest:
        raise ValueError(
            f"tokens_per_step: {step}, batch_tokens: {batch}: the longest window has {longest} tokens. Make both at "
            f"least as large, or the windows (length, retrieval) shorter."
        )
    uneven = sorted({length for _, length in shares_of(config) if batch % length})
    if uneven or step % batch:
        raise ValueError(
            f"batch_tokens: {batch}, tokens_per_step: {step}: expected a multiple of every window ({uneven} are not "
            f"divisors), and a step of whole batches, so that the shares of the mix are those of the tokens."
        )
    if config["short_first"] and not mix.get("short"):
        raise ValueError(f"short_first: {config['short_first']}: the mix has no short windows. Give them a share.")
    if not 0 <= config["averaged"] < 1 or (config["averaged"] and config["lora"]):
        raise ValueError(
            f"averaged: {config['averaged']}, lora: {config['lora']}: expected a share from 0 to below 1 of the stock "
            f"weights, and 0 with adapters, whose size does the same."
        )
    if config["tokens"] < step:
        raise ValueError(f"tokens: {config['tokens']}: expected at least the {step} of one step.")
    return config


def shares_of(config: dict[str, Any]) -> dict[tuple[str, int], float]:
    """The share of the tokens of each kind of window and length. Lengths of a kind have equal shares."""
    lengths = {"long": [config["length"]], "short": config["short"], "retrieval": config["retrieval"]["lengths"]}
    return {
        (kind, length): share / len(lengths[kind])
        for kind, share in config["mix"].items()
        if share
        for length in lengths[kind]
    }


def differing(config: dict[str, Any], data: str) -> dict[str, str]:
    """A short hash of every setting that decides the weights, and of the data; a resumed run must have the same."""
    free = {"out", "evaluation", "documents", "save_dtype", "averaged"}
    return fingerprints({key: value for key, value in config.items() if key not in free} | {"data": data})
