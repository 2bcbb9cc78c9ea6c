"""UTF-8 texts from files, pipes and standard input, in pieces."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from .corpora import load_text
from .pieces import _decoded


def read_pieces(path_or_name: str | Path) -> Iterator[str]:
    """A UTF-8 text in pieces: a file, `-` for standard input, or `python-docs` as in `corpora.load_text`.

    White space at both ends is left out. FileNotFoundError and ValueError as in `load_text`; a file that is empty or
    no text is refused at once, later faults are found when it is read.
    """
    if path_or_name == "python-docs":
        return iter([load_text(path_or_name)])
    if str(path_or_name) == "-":
        return _stripped(_decoded(sys.stdin.buffer, "standard input"), "standard input")
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give one text file, '-' for standard input, or 'python-docs'.")
    if not path.exists():
        raise FileNotFoundError(f"No text file at {path}. Give a UTF-8 file, '-' for standard input, or 'python-docs'.")
    pieces = _stripped(_from_file(path), str(path))
    if not path.is_file():  # a pipe may not have been written to yet
        return pieces
    return chain([next(pieces)], pieces)


def _from_file(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        yield from _decoded(file, str(path))


def _stripped(pieces: Iterable[str], name: str) -> Iterator[str]:
    """`pieces` without the white space at both ends; ValueError if nothing is left."""
    held, begun = "", False
    for piece in pieces:
        text = held + piece
        text = text if begun else text.lstrip()
        rest = text.rstrip()
        if rest:
            begun = True
            yield rest
        held = text[len(rest) :]
    if not begun:
        raise ValueError(f"{name} is empty. Give a file with text in it, or 'python-docs'.")
