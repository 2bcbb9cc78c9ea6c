"""The readers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ...near import did_you_mean
from ..tasks.sample import Sample
from . import giraffe, hellobench, jsonl, leval, longbench, longbench2, longchat, longwriter, m4le, ruler, sgt

READERS: dict[str, Callable[[str | Path], Iterator[Sample]]] = {
    "jsonl": jsonl.read,
    "longbench": longbench.read,
    "longbench2": longbench2.read,
    "leval": leval.read,
    "m4le": m4le.read,
    "ruler": ruler.read,
    "longchat": longchat.read,
    "giraffe": giraffe.read,
    "longwriter": longwriter.read,
    "hellobench": hellobench.read,
    "sgt": sgt.read,
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
        raise ValueError(
            f"reader {name!r}: no such reader. {did_you_mean(name, READERS)}There are: {', '.join(READERS)}."
        )
    return READERS[name](path)
