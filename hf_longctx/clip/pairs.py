"""Images and their captions on disk: JSONL, ShareGPT4V's JSON, or a folder with a text file beside each image."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..text.pieces import lines_of
from .checks import read_json, some

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

_Captioned = tuple[str, Path, Any, Any]  # its place, for errors; image, long and short caption


@dataclass(frozen=True)
class Pair:
    """An image with its long caption, and the short one: its own, or the long one's first sentence."""

    image: Path
    long: str
    short: str


def read_pairs(source: str | os.PathLike[str], images: str | os.PathLike[str] | None = None) -> list[Pair]:
    """All pairs of a source, in its order.

    Args:
        source: A `.jsonl` of lines {"image": path, "caption": long, "short": optional}, a `.json` in ShareGPT4V's form,
            or a folder of images with a `.txt` of the same name beside each, whose first line is the long caption and
            whose second line, if any, is the short one.
        images: The folder that paths in a file are relative to; by default the file's own.

    Raises:
        ValueError: A line of another form, or captions missing; the first few places are named.
        FileNotFoundError: No such source, no pairs in it, or images that do not exist.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        rows = _folder(path)
    elif path.is_file():
        base = path.parent if images is None else Path(images).expanduser()
        rows = _jsonl(path, base) if path.suffix == ".jsonl" else _json(path, base)
    else:
        raise FileNotFoundError(f"{str(source)!r}: no such file or folder. Give a .jsonl, a .json or a folder.")
    pairs: list[Pair] = []
    without: list[str] = []
    for where, image, long, short in rows:
        if not isinstance(long, str) or not long.strip() or not (short is None or isinstance(short, str)):
            without.append(where)
        else:
            pairs.append(Pair(image, long.strip(), (short or "").strip() or first_sentence(long)))
    if without:
        raise ValueError(
            f"{str(path)!r}: {len(without)} of {len(pairs) + len(without)} images have no caption: {some(without)}. "
            f"Caption them, or leave them out."
        )
    if not pairs:
        raise FileNotFoundError(f"{str(source)!r} has no images with captions.")
    gone = [str(pair.image) for pair in pairs if not pair.image.is_file()]
    if gone:
        raise FileNotFoundError(
            f"{len(gone)} of the {len(pairs)} images in {str(source)!r} do not exist: {some(gone)}. Paths are taken "
            f"from the file's folder; `images` names another."
        )
    return pairs


def first_sentence(caption: str) -> str:
    """The short caption of a long one, as Long-CLIP takes it: up to the first full stop before a space."""
    return re.split(r"(?<=\.)\s", caption.strip(), maxsplit=1)[0]


def sharegpt4v_rows(file: Path) -> list[tuple[str, str]]:
    """(image, caption) of each row of ShareGPT4V's JSON, whose caption is the model's turn of a conversation."""
    data, rows = read_json(file), []
    for number, row in enumerate(data if isinstance(data, list) else []):
        try:
            rows.append((row["image"], row["conversations"][1]["value"].replace("\n", " ").strip()))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(
                f'{str(file)!r}, row {number}: expected ShareGPT4V\'s {{"image": ..., "conversations": [..., '
                f'{{"value": caption}}]}} ({error!r}).'
            ) from error
    if not rows:
        raise ValueError(f"{str(file)!r} has no rows. ShareGPT4V's file is a list of them.")
    return rows


def _jsonl(path: Path, base: Path) -> Iterator[_Captioned]:
    for number, line in enumerate(lines_of(path.read_bytes().decode()), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{str(path)!r}, line {number}: not JSON ({error}).") from error
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise ValueError(f'{str(path)!r}, line {number}: expected {{"image": path, "caption": text}}.')
        yield f"line {number}", base / row["image"], row.get("caption"), row.get("short")


def _json(path: Path, base: Path) -> Iterator[_Captioned]:
    for number, (image, caption) in enumerate(sharegpt4v_rows(path)):
        yield f"row {number}", base / image, caption, None


def _folder(path: Path) -> Iterator[_Captioned]:
    for image in sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES):
        text = image.with_suffix(".txt")
        long, short = [*(lines_of(text.read_bytes().decode()) if text.is_file() else []), None, None][:2]
        yield str(image), image, long, short
