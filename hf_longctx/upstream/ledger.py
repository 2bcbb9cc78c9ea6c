"""The ledger of upstream defects: what each entry says.

An entry is a folder `patches/<package>/NNNN-name/`; a wheel carries them as `hf_longctx/_ledger`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from ..near import did_you_mean

PACKAGE = Path(__file__).resolve().parents[1]
WRONG, FIXED, NOT_RUN = "wrong", "fixed", "not run"
KINDS = {
    "shim": "cured at run time, when asked",
    "diff": "cured by a change of the package's files",
    "ours": "hf_longctx does without the code at fault",
    "refused": "hf_longctx refuses it by name, or says so",
}


@dataclass(frozen=True)
class Defect:
    """One entry of the ledger.

    Attributes:
        folder: Where its files are.
        package: The package at fault.
        title: What is wrong, in one line.
        kind: What hf_longctx does about it, a key of `KINDS`.
        needs: What its script needs beyond the package: "gpu", "avx512_bf16", "fastapi".
        alone: Its script changes the whole process, and is run in one of its own.
        seen: What was seen, by version of the package: "wrong", "fixed", "not run".
    """

    folder: Path = field(repr=False)
    package: str
    title: str
    kind: str
    needs: tuple[str, ...] = ()
    alone: bool = False
    seen: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def id(self) -> str:
        """Its number, four digits."""
        return self.folder.name.partition("-")[0]

    @property
    def version(self) -> str:
        """The version of the package that is installed, without what follows a plus sign; "" where there is none."""
        try:
            return metadata.version(self.package).partition("+")[0]
        except metadata.PackageNotFoundError:
            return ""


def ledger() -> Path:
    """The folder of the entries: the wheel's, or the one of the checkout."""
    inside = PACKAGE / "_ledger"
    return inside if inside.is_dir() else PACKAGE.parent / "patches"


@cache
def defects() -> dict[str, Defect]:
    """The entries by their numbers, in order."""
    found = [read(path.parent) for path in ledger().glob("*/*/patch.toml")]
    return {one.id: one for one in sorted(found, key=lambda one: one.id)}


def defect(given: str | int) -> Defect:
    """The entry with a number ("0002", "2", 2), or with a name ("packed-cache-leak").

    Raises:
        ValueError: There is none.
    """
    known = defects()
    number = str(given).strip().zfill(4)
    names = {one.folder.name.partition("-")[2]: one for one in known.values()}
    found = known.get(number) or names.get(str(given)) or known.get(str(given).partition("-")[0])
    if found is None:
        hint = did_you_mean(given, names) if not str(given).strip().isdigit() else ""
        raise ValueError(f"{given!r}: no such entry. {hint}`hf-longctx patches list` shows {len(known)} of them.")
    return found


def chosen(given: str | int | Iterable[str | int] | None) -> list[Defect]:
    """The entries that are named, each once; all of them where nothing is.

    Args:
        given: Numbers or names, or one of these.

    Raises:
        ValueError: There is no such entry.
    """
    if given is None:
        return list(defects().values())
    found = map(defect, [given] if isinstance(given, str | int) else given)
    return list({one.id: one for one in found}.values())


def read(folder: Path) -> Defect:
    """The entry in a folder, as its `patch.toml` is now."""
    told: dict[str, Any] = tomllib.loads((folder / "patch.toml").read_text(encoding="utf-8"))
    return Defect(
        folder=folder,
        package=told["package"],
        title=told["title"],
        kind=told["kind"],
        needs=tuple(told.get("needs", ())),
        alone=told.get("alone", False),
        seen=told["seen"],
    )
