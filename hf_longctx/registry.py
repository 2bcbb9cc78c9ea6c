"""Everything that is chosen by name, methods and procedures: one file each, and one table of them all.

A module of `methods/` or `generation/` defines a class whose `name` is the module's. `registry.json` says all there is
to say of each, so that neither `hf-longctx methods` nor the public names import torch; `make tables` writes it from the
classes, and a test compares. A file that is not in the table yet is imported and asked.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .near import did_you_mean
from .settings import Settings, read_settings

if TYPE_CHECKING:
    from torch import nn

FILE = Path(__file__).with_name("registry.json")
ROOMS = {"methods": (), "generation": ("cuda_graph", "procedure")}  # folder -> its modules that are none of either
_classes: dict[str, type[Recorded]] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded(Settings):
    """Base of methods and procedures. A subclass with a `name` is in the registry.

    It sets `summary` and `paper`, and its docstring has a paragraph for each of `settings.GUIDANCE`, in a sentence or
    two, which `hf-longctx methods` shows.
    """

    kind: ClassVar[str] = ""  # "method" or "procedure"
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    reads_documents: ClassVar[bool] = False  # answers a question to a document that it never holds whole

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__dict__.get("name"):
            return  # an abstract layer between this class and the methods
        if cls.name in _classes:
            taken = _classes[cls.name]
            raise ValueError(
                f"name={cls.name!r}: {cls.__module__}.{cls.__qualname__} cannot take the name of "
                f"{taken.__module__}.{taken.__qualname__}. Give the new method a name of its own."
            )
        _classes[cls.name] = cls

    def store_(self, model: nn.Module) -> None:
        """Make it part of what `model.save_pretrained` writes."""
        raise NotImplementedError

    def check_room(self, model: nn.Module, n_tokens: int) -> None:
        """Raise ValueError where `model` cannot answer a prompt of `n_tokens` with it. The default never does."""

    def running(self, model: nn.Module) -> AbstractContextManager[dict[str, Any]]:
        """`with chosen.running(model) as extra: model.generate(..., **extra)` generates with it."""
        raise NotImplementedError


def modules() -> dict[str, str]:
    """The module of every method and procedure by its name, sorted, as the folders have them. Nothing is imported."""
    found = {}
    for room, others in ROOMS.items():
        folders = importlib.import_module(f".{room}", __package__).__path__
        found.update({m.name: f"{room}.{m.name}" for m in pkgutil.iter_modules(folders) if m.name not in others})
    return dict(sorted(found.items()))


def get(name: str) -> type[Recorded]:
    """The method or procedure class called `name`. ValueError with the nearest name if there is none."""
    if name not in _classes and name in (there := modules()):
        importlib.import_module(f".{there[name]}", __package__)
        if name not in _classes:
            raise ValueError(
                f"{__package__}.{there[name]}: expected a method or a procedure with name={name!r} in a file of this "
                f"name. Name the class after its file, or put the file into another folder."
            )
    if name not in _classes:
        raise ValueError(unknown(name, sorted({*modules(), *_classes})))
    return _classes[name]


def list_methods() -> dict[str, type[Recorded]]:
    """Every method and procedure by its name, sorted."""
    return {name: get(name) for name in sorted({*modules(), *_classes})}


def from_spec(spec: dict[str, Any]) -> Recorded:
    """Build a method or procedure from what is saved of it, e.g. `{"name": "lm_infinite", "n_local": 4096}`."""
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise ValueError(f'{spec!r}: a method is given as {{"name": "...", field: value, ...}}.')
    return get(spec["name"]).from_fields({k: v for k, v in spec.items() if k != "name"})


def parse(name: str, settings: Iterable[str] = ()) -> Recorded:
    """Build one from command-line settings: `parse("lm_infinite", ["n_local=4096", "top_k=5"])`.

    Values are read as `settings.read_settings` says.
    """
    return from_spec({"name": name, **read_settings(settings)})


def unknown(name: str, known: Iterable[str]) -> str:
    """What to say about a name that nothing has, with the nearest one."""
    return f"name={name!r}: no such method. {did_you_mean(name, known)}There are: {', '.join(known)}."


# -- the table ---------------------------------------------------------------------------------------------------------
def table() -> dict[str, dict[str, Any]]:
    """The entries of `registry.json` by their names."""
    return {entry["name"]: entry for entry in json.loads(FILE.read_text(encoding="utf-8"))}


def entries() -> dict[str, dict[str, Any]]:
    """The entries of everything that there is by name, sorted: those of the table, and those of new files."""
    known = table()
    return {name: known[name] if name in known else describe(name) for name in modules()}


def describe(name: str) -> dict[str, Any]:
    """The entry of one method or procedure, as its class says it."""
    cls = get(name)
    settings = {
        field.name: {
            "type": field.type if isinstance(field.type, str) else inspect.formatannotation(field.type),
            "default": None if field.default is dataclasses.MISSING else field.default,
        }
        for field in dataclasses.fields(cls)
    }
    about = {"name": name, "kind": cls.kind, "class": cls.__name__, "module": modules()[name]}
    told = {"summary": cls.summary, "guidance": cls.guidance(), "paper": cls.paper}
    return {**about, **told, "reads_documents": cls.reads_documents, "settings": settings}


def text() -> str:
    """The text of `registry.json` as the classes ask for it."""
    return json.dumps([describe(name) for name in modules()], indent=2, ensure_ascii=False) + "\n"
