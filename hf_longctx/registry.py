"""What there is to say about every method, as a file: `hf-longctx methods` need not import torch to say it.

`python -m hf_longctx.registry` (`make tables`) writes the file from the classes; a test compares the two.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .near import did_you_mean

if TYPE_CHECKING:
    from .method import LongContextMethod

FILE = Path(__file__).with_name("methods.json")


def entries() -> dict[str, dict[str, Any]]:
    """The entries of the file by the methods' names, sorted."""
    return {entry["name"]: entry for entry in json.loads(FILE.read_text(encoding="utf-8"))}


def describe(cls: type[LongContextMethod]) -> dict[str, Any]:
    """The entry of one method."""
    settings = {
        field.name: {
            "type": str(field.type),
            "default": None if field.default is dataclasses.MISSING else field.default,
        }
        for field in dataclasses.fields(cls)
    }
    about = {"name": cls.name, "class": cls.__name__, "summary": cls.summary, "guidance": cls.guidance()}
    return {**about, "paper": cls.paper, "settings": settings}


def text() -> str:
    """The file's text as the classes ask for it."""
    from .method import list_methods

    return json.dumps([describe(cls) for cls in list_methods().values()], indent=2, ensure_ascii=False) + "\n"


def unknown(name: str, known: Iterable[str]) -> str:
    """What to say about a name that no method has, with the nearest one."""
    hint = did_you_mean(name, known)
    if str(name).lower().startswith("xl3"):
        hint = "XL3M is a way to generate, not a change of the model: `hf-longctx generate --method xl3m`. "
    return f"name={name!r}: no such method. {hint}There are: {', '.join(known)}."


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
