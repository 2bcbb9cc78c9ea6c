"""Images and their captions on disk: JSONL, ShareGPT4V's JSON, or a folder with a text file beside each image."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..text.pieces import lines_of

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


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
        FileNotFoundError: No such source, no pairs in it, or images that are not there.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = _folder(path)
    elif path.is_file():
        base = path.parent if images is None else Path(images).expanduser()
        found = _jsonl(path, base) if path.suffix == ".jsonl" else _json(path, base)
    else:
        raise FileNotFoundError(f"{str(source)!r}: no such file or folder. Give a .jsonl, a .json or a folder.")
    if not found:
        raise FileNotFoundError(f"{str(source)!r} has no images with captions.")
    gone = [str(pair.image) for pair in found if not pair.image.is_file()]
    if gone:
        raise FileNotFoundError(
            f"{len(gone)} of the {len(found)} images in {str(source)!r} are not there: {_some(gone)}. Paths are taken "
            f"from the file's folder; `images` names another."
        )
    return found


def first_sentence(caption: str) -> str:
    """The short caption of a long one, as Long-CLIP takes it: up to the first full stop that a space follows."""
    return re.split(r"(?<=\.)\s", caption.strip(), maxsplit=1)[0]


def read_json(path: Path) -> Any:
    """A JSON file, or an error that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not a JSON file ({error}).") from error


def sharegpt4v_rows(data: Any, file: Path) -> list[tuple[str, str]]:
    """(image, caption) of each row of ShareGPT4V's JSON, whose caption is the model's turn of a conversation."""
    rows = []
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


def _jsonl(path: Path, base: Path) -> list[Pair]:
    pairs: list[Pair] = []
    without: list[str] = []
    for number, line in enumerate(lines_of(path.read_bytes().decode()), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{str(path)!r}, line {number}: not JSON ({error}).") from error
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise ValueError(f'{str(path)!r}, line {number}: expected {{"image": path, "caption": text}}.')
        _add(pairs, without, f"line {number}", base / row["image"], row.get("caption"), row.get("short"))
    return _complete(pairs, without, path)


def _json(path: Path, base: Path) -> list[Pair]:
    pairs: list[Pair] = []
    without: list[str] = []
    for number, (image, caption) in enumerate(sharegpt4v_rows(read_json(path), path)):
        _add(pairs, without, f"row {number}", base / image, caption, None)
    return _complete(pairs, without, path)


def _folder(path: Path) -> list[Pair]:
    pairs: list[Pair] = []
    without: list[str] = []
    for image in sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES):
        text = image.with_suffix(".txt")
        lines = lines_of(text.read_bytes().decode()) if text.is_file() else []
        _add(pairs, without, str(image), image, *[*lines, None, None][:2])
    return _complete(pairs, without, path)


def _add(pairs: list[Pair], without: list[str], where: str, image: Path, long: Any, short: Any) -> None:
    if not isinstance(long, str) or not long.strip() or not (short is None or isinstance(short, str)):
        without.append(where)
        return
    pairs.append(Pair(image, long.strip(), (short or "").strip() or first_sentence(long)))


def _complete(pairs: list[Pair], without: list[str], path: Path) -> list[Pair]:
    if without:
        raise ValueError(
            f"{str(path)!r}: {len(without)} of {len(pairs) + len(without)} images have no caption: {_some(without)}. "
            f"Caption them, or leave them out."
        )
    return pairs


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
