"""How the package and its extras are installed, in the words of every message: from a checkout, no registry has it."""

from __future__ import annotations

CHECKOUT = "in a checkout of hf_longctx"
INSTALL = f"pip install . {CHECKOUT}"  # the one place to change on the day that a registry has it
UPGRADE = f"git pull && pip install . {CHECKOUT}"


def install_extra(name: str) -> str:
    """The command that brings one of pyproject.toml's optional dependencies, for the end of a sentence."""
    return f"pip install '.[{name}]' {CHECKOUT}"
