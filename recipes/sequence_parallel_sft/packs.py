"""Documents as token ids, put together in packs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import DataCollatorWithFlattening

from hf_longctx.text import load_text

Pack = dict[str, list[list[int]]]  # {"documents": token ids of each}


def read_documents(path: str) -> list[str]:
    """The texts of a folder of .txt files, of a .jsonl of {"text": ...}, or of Python's reference."""
    if path == "python-docs":
        from pydoc_data.topics import topics

        return [topics[name].strip() for name in sorted(topics)]
    place = Path(path).expanduser()
    if place.suffix == ".jsonl":
        found = [json.loads(line)["text"] for line in place.read_text(encoding="utf-8").splitlines()]
    else:
        found = [load_text(file) for file in sorted(place.glob("*.txt"))]
    if not found:
        raise ValueError(f"documents: {path}: expected a folder of .txt files, a .jsonl, or python-docs.")
    return found


def packed(documents: list[list[int]], size: int) -> list[Pack]:
    """Packs of at most `size` tokens, filled from the longest document on. Longer documents are cut into several."""
    pieces = [ids[start : start + size] for ids in documents for start in range(0, len(ids), size)]
    packs: list[list[list[int]]] = []
    room: list[int] = []
    for piece in sorted(pieces, key=len, reverse=True):
        at = next((i for i, free in enumerate(room) if free >= len(piece)), len(packs))
        if at == len(packs):
            packs.append([])
            room.append(size)
        packs[at].append(piece)
        room[at] -= len(piece)
    return [{"documents": pack} for pack in packs]


class PackCollator(DataCollatorWithFlattening):
    """The documents of one or more packs one after the other, with positions that start again with each document."""

    def __call__(self, features: list[Pack], **kwargs: Any) -> dict[str, Any]:
        return super().__call__([{"input_ids": ids} for pack in features for ids in pack["documents"]], **kwargs)
