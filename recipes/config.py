"""What recipes share that read a `config.yaml`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def check_keys(config: dict[str, Any], known: Collection[str]) -> None:
    """ValueError unless a recipe's settings are exactly the `known` ones, each of which its config.yaml explains."""
    if unknown := sorted(set(config) - set(known)):
        raise ValueError(f"{', '.join(unknown)}: not settings of this recipe, which are {', '.join(sorted(known))}.")
    if missing := sorted(set(known) - set(config)):
        raise ValueError(f"the config lacks {', '.join(missing)}. config.yaml says what each is.")
