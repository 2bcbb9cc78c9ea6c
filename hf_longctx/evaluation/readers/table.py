"""The readers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from hf_longctx.evaluation.readers import jsonl
from hf_longctx.evaluation.tasks.sample import Sample

READERS: dict[str, Callable[[str | Path], Iterator[Sample]]] = {
    "jsonl": jsonl.read,
}


def read(name: str, path: str | Path) -> Iterator[Sample]:
    """Samples of a local file.

    Args:
        name: A name from `READERS`.
        path: The file. The task's name is its stem where the format does not say it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There is no such reader, or the file is not in its format; the error says where.
    """
    if name not in READERS:
        raise ValueError(f"reader {name!r}: no such reader. There are: {', '.join(READERS)}.")
    return READERS[name](path)
