"""How the package and its extras are installed, in the words of every message: from a checkout, no registry has it.

What takes minutes and needs an optional package in the end names it as a `Package`, and calls `check_packages` first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module

CHECKOUT = "in a checkout of hf_longctx"
INSTALL = f"pip install . {CHECKOUT}"  # the one place to change on the day that a registry has it
UPGRADE = f"git pull && pip install . {CHECKOUT}"


def install_extra(name: str) -> str:
    """The command that brings one of pyproject.toml's optional dependencies, for the end of a sentence."""
    return f"pip install '.[{name}]' {CHECKOUT}"


@dataclass(frozen=True)
class Package:
    """An optional package, declared beside the code that imports it.

    Args:
        use: What it is for, as the beginning of a sentence: "figures are drawn by matplotlib".
        modules: What is imported of it.
        install: The command that brings it.
    """

    use: str
    modules: tuple[str, ...]
    install: str


def check_packages(packages: Iterable[Package]) -> None:
    """ImportError that names every one of them that cannot be imported, what it is for, and how to get it."""
    found = {package: list(_errors(package)) for package in dict.fromkeys(packages)}
    missing = {package: errors for package, errors in found.items() if errors}
    if missing:
        told = (
            f"{package.use} ({', '.join(map(str, errors))}). Install it: {package.install}."
            for package, errors in missing.items()
        )
        raise ImportError(" ".join(told)) from next(iter(missing.values()))[0]


def _errors(package: Package) -> Iterator[ImportError]:
    for module in package.modules:
        try:
            import_module(module)
        except ImportError as error:
            yield error
