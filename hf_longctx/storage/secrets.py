"""Tokens of the Hugging Face Hub: recognised, so that they are neither sent nor shown."""

from __future__ import annotations

import re

TOKEN = re.compile(r"(?<![A-Za-z0-9_])hf_[A-Za-z0-9]{20,}")


def is_argument_with_token(argument: str) -> bool:
    """Whether an argument of a command is a token, or an option with one (`--token=hf_...`)."""
    return TOKEN.fullmatch(argument.partition("=")[2] if argument.startswith("-") else argument.strip()) is not None


_QUOTED_PATH = re.compile(r"""(['"])(?:~|[A-Za-z]:)?[/\\].*?\1""")
_PATH = re.compile(r"""(?<![\w:/.<\\])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'"<>|,;:()]+)+[/\\]?""")


def anonymous(text: str, *known: str) -> str:
    """`text` without tokens and without absolute paths, for what is shown to others.

    Args:
        text: Of any kind.
        known: Names that are left out as well: a folder that is relative, or has spaces.
    """
    for name in sorted(filter(None, known), key=len, reverse=True):
        text = text.replace(name, "…")
    text = TOKEN.sub("hf_…", text)
    return _PATH.sub("…", _QUOTED_PATH.sub("'…'", text))
