"""The name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str], *, quoted: bool = True) -> str:
    """`"Did you mean 'ppl'? "` for the nearest of the known names, nothing where none is near.

    Upper case, hyphens for underscores and spaces around it make no difference.
    """
    names = {_plain(one): one for one in known}
    # of a short name one letter is a large share
    near = difflib.get_close_matches(_plain(str(name)), names, n=1, cutoff=0.5)
    if not near:
        return ""
    meant = names[near[0]]
    return f"Did you mean {meant!r}? " if quoted else f"Did you mean {meant}? "


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_")
