"""The published retrieval protocols, on local copies of their data: which files, which captions, how many.

| name | data | images | captions |
|---|---|---|---|
| `coco` | COCO val2017 | 5,000 | the first 5 of each |
| `flickr30k` | Flickr30k | all 31,783, as Long-CLIP's tables, not the 1,000 of the Karpathy split | 5 of each |
| `urban1k` | Urban1k | 1,000 | the first line of each file, cut at the model's length |
| `sharegpt4v` | ShareGPT4V | the first 1,000 rows | 1 of each |
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...near import did_you_mean
from ...text.pieces import lines_of
from ..pairs import read_json, sharegpt4v_rows


@dataclass(frozen=True)
class Retrieval:
    """Images and captions of a benchmark: caption i belongs to `images[image_of[i]]`.

    Args:
        truncate: Whether the protocol cuts captions at the model's length.
    """

    name: str
    images: list[Path]
    captions: list[str]
    image_of: list[int]
    truncate: bool


def read_protocol(name: str, folder: str | os.PathLike[str]) -> Retrieval:
    """A benchmark from a folder with its own files, as its authors pack them.

    Args:
        name: `coco` (annotations/captions_val2017.json and val2017/), `flickr30k` (results_20130124.token or
            results.csv, and flickr30k-images/), `urban1k` (image/ and caption/) or `sharegpt4v`
            (share-captioner_coco_lcs_sam_1246k_1107.json and the folders its rows name).
        folder: Where these are.

    Raises:
        ValueError: Another name, or files of another form.
        FileNotFoundError: A file of the protocol is not there.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"{name!r}: {did_you_mean(name, PROTOCOLS)}expected one of {', '.join(PROTOCOLS)}.")
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{str(folder)!r}: there is no such folder. Give that with {name}'s files.")
    return PROTOCOLS[name](root)


def _coco(root: Path) -> Retrieval:
    data = read_json(_file(root, "annotations/captions_val2017.json", "captions_val2017.json"))
    try:
        names = {one["id"]: one["file_name"] for one in data["images"]}
        told: dict[Any, list[str]] = {key: [] for key in names}
        for one in data["annotations"]:
            told[one["image_id"]].append(one["caption"].strip())
    except (KeyError, TypeError) as error:
        raise ValueError(f"captions_val2017.json under {str(root)!r} is not in COCO's form ({error!r}).") from error
    return _several("coco", root / "val2017", ((names[key], captions) for key, captions in told.items()))


def _flickr30k(root: Path) -> Retrieval:
    file = _file(root, "results_20130124.token", "results.csv")
    told: dict[str, list[str]] = {}
    # a carriage return ends a line of the one only with a line feed after it; csv reads both by itself
    with open(file, encoding="utf-8", newline="\n" if file.suffix == ".token" else "") as lines:
        if file.suffix == ".token":
            rows = (line.rstrip("\n").split("\t", 1) for line in lines if line.strip())
            for row in rows:
                if len(row) != 2 or "#" not in row[0]:
                    raise ValueError(f"{file.name}: expected lines 'image.jpg#0<tab>caption', found {row[0][:60]!r}.")
                told.setdefault(row[0].rsplit("#", 1)[0], []).append(row[1].strip())
        else:
            for number, cells in enumerate(csv.reader(lines, delimiter="|")):
                if number == 0:
                    continue
                if len(cells) < 3:
                    # a row of the published file lacks its separator
                    raise ValueError(f"{file.name}, line {number + 1}: expected 'image| number| caption'. Repair it.")
                told.setdefault(cells[0].strip(), []).append("|".join(cells[2:]).strip())
    return _several("flickr30k", root / "flickr30k-images", told.items())


def _urban1k(root: Path) -> Retrieval:
    files = sorted((root / "caption").glob("*.txt"), key=lambda file: (len(file.stem), file.stem))
    if not files:
        raise FileNotFoundError(f"{str(root / 'caption')!r} has no .txt files: Urban1k has one for each image.")
    images, captions = [], []
    for file in files:
        images.append(_file(root / "image", *(file.stem + ending for ending in (".jpg", ".png", ".jpeg"))))
        text = lines_of(file.read_bytes().decode())
        captions.append(_told(file, text[0] if text else ""))
    return Retrieval("urban1k", images, captions, list(range(len(images))), truncate=True)


def _sharegpt4v(root: Path) -> Retrieval:
    file = _file(root, "share-captioner_coco_lcs_sam_1246k_1107.json")
    rows = sharegpt4v_rows(read_json(file), file)[:1000]
    images = [root / image for image, _ in rows]
    return Retrieval("sharegpt4v", images, [text for _, text in rows], list(range(len(rows))), truncate=True)


PROTOCOLS = {"coco": _coco, "flickr30k": _flickr30k, "urban1k": _urban1k, "sharegpt4v": _sharegpt4v}
_CAPTIONS = 5


def _several(name: str, folder: Path, told: Iterable[tuple[str, list[str]]]) -> Retrieval:
    images: list[Path] = []
    captions: list[str] = []
    image_of: list[int] = []
    for image, lines in told:
        if len(lines) < _CAPTIONS:
            raise ValueError(f"{image} has {len(lines)} captions; {name}'s protocol takes {_CAPTIONS} of each.")
        image_of += [len(images)] * _CAPTIONS
        images.append(folder / image)
        captions += [_told(image, line) for line in lines[:_CAPTIONS]]
    if not images:
        raise ValueError(f"{name}: no image is named in its file of captions.")
    return Retrieval(name, images, captions, image_of, truncate=True)


def _told(where: Any, caption: str) -> str:
    if not caption.strip():
        raise ValueError(f"{where}: an empty caption. Repair the file.")
    return caption.strip()


def _file(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(f"{str(root)!r} has no {' or '.join(names)}. Give the folder of the benchmark's own files.")
