"""The defects of upstream that the ledger knows, and which of them these versions have."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from .diagnosis import Diagnosis

PACKAGE = Path(__file__).resolve().parents[1]
PLACES = PACKAGE / "_ledger", PACKAGE.parent / "patches"  # of an installed package, of a checkout
TOML = "tomllib" if sys.version_info >= (3, 11) else "tomli"


def entries() -> dict[str, dict[str, Any]]:
    """What each `patch.toml` says, by the name of its folder; nothing without the ledger, or without a reader of it."""
    if importlib.util.find_spec(TOML) is None:
        return {}
    toml = importlib.import_module(TOML)
    place = next((place for place in PLACES if place.is_dir()), PLACES[0])
    files = sorted(place.glob("*/*/patch.toml"), key=lambda file: file.parent.name)
    return {file.parent.name: toml.loads(file.read_text(encoding="utf-8")) for file in files}


def defects() -> Iterator[Diagnosis]:
    """One line for each that the installed version of its package is known to have."""
    known = entries()
    here, elsewhere = [], 0
    for name, told in known.items():
        try:
            version = metadata.version(told["package"]).partition("+")[0]
        except metadata.PackageNotFoundError:
            elsewhere += 1
            continue
        seen = told.get("seen", {}).get(version)
        if seen == "fixed":
            elsewhere += 1
            continue
        kind = f"; {told['kind']}" if "kind" in told else ""
        state = f"present{kind}" if seen == "wrong" else "not looked at on this version"
        here.append(Diagnosis("defect", f"{name} ({told['package']} {version}): {state}"))
    counted = f"{len(known)} known, {len(here)} of them here or not looked at, {elsewhere} not here"
    yield Diagnosis("upstream", counted if known else "the ledger of defects is not installed")
    yield from here
