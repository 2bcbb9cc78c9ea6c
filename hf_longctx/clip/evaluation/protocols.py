"""The published retrieval protocols, on local copies of their data: their files, captions and numbers.

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
from ..checks import read_json
from ..pairs import sharegpt4v_rows


@dataclass(frozen=True)
class Retrieval:
    """Images and captions of a benchmark: caption i belongs to `images[image_of[i]]`."""

    name: str
    images: list[Path]
    captions: list[str]
    image_of: list[int]
    truncate: bool = True  # whether the protocol cuts captions at the model's length


def read_protocol(name: str, folder: str | os.PathLike[str]) -> Retrieval:
    """A benchmark from a folder with its own files, as its authors pack them.

    Args:
        name: `coco` (annotations/captions_val2017.json and val2017/), `flickr30k` (results_20130124.token or
            results.csv, and flickr30k-images/), `urban1k` (image/ and caption/) or `sharegpt4v`
            (share-captioner_coco_lcs_sam_1246k_1107.json and the folders its rows name).
        folder: Their folder.

    Raises:
        ValueError: Another name, or files of another form.
        FileNotFoundError: A file of the protocol is missing.
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
        captions: dict[Any, list[str]] = {key: [] for key in names}
        for one in data["annotations"]:
            captions[one["image_id"]].append(one["caption"].strip())
    except (KeyError, TypeError) as error:
        raise ValueError(f"captions_val2017.json under {str(root)!r} is not in COCO's form ({error!r}).") from error
    return _several("coco", root / "val2017", ((names[key], lines) for key, lines in captions.items()))


def _flickr30k(root: Path) -> Retrieval:
    file = _file(root, "results_20130124.token", "results.csv")
    captions: dict[str, list[str]] = {}
    # only a line feed ends a line of the first form; csv finds the ends of the second
    with open(file, encoding="utf-8", newline="\n" if file.suffix == ".token" else "") as lines:
        if file.suffix == ".token":
            for line in filter(str.strip, lines):
                name, tab, caption = line.rstrip("\n").partition("\t")
                if not tab or "#" not in name:
                    raise ValueError(f"{file.name}: expected lines 'image.jpg#0<tab>caption', found {name[:60]!r}.")
                captions.setdefault(name.rsplit("#", 1)[0], []).append(caption.strip())
        else:
            for number, cells in enumerate(csv.reader(lines, delimiter="|")):
                if number == 0:
                    continue
                if len(cells) < 3:
                    # a row of the published file lacks its separator
                    raise ValueError(f"{file.name}, line {number + 1}: expected 'image| number| caption'. Repair it.")
                captions.setdefault(cells[0].strip(), []).append("|".join(cells[2:]).strip())
    return _several("flickr30k", root / "flickr30k-images", captions.items())


def _urban1k(root: Path) -> Retrieval:
    files = sorted((root / "caption").glob("*.txt"), key=lambda file: (len(file.stem), file.stem))
    if not files:
        raise FileNotFoundError(f"{str(root / 'caption')!r} has no .txt files: Urban1k has one for each image.")
    images, captions = [], []
    for file in files:
        images.append(_file(root / "image", *(file.stem + ending for ending in (".jpg", ".png", ".jpeg"))))
        text = lines_of(file.read_bytes().decode())
        captions.append(_caption(file, text[0] if text else ""))
    return Retrieval("urban1k", images, captions, list(range(len(images))))


def _sharegpt4v(root: Path) -> Retrieval:
    rows = sharegpt4v_rows(_file(root, "share-captioner_coco_lcs_sam_1246k_1107.json"))[:1000]
    images = [root / image for image, _ in rows]
    return Retrieval("sharegpt4v", images, [text for _, text in rows], list(range(len(rows))))


PROTOCOLS = {"coco": _coco, "flickr30k": _flickr30k, "urban1k": _urban1k, "sharegpt4v": _sharegpt4v}
_CAPTIONS = 5


def _several(name: str, folder: Path, captioned: Iterable[tuple[str, list[str]]]) -> Retrieval:
    data = Retrieval(name, [], [], [])
    for image, lines in captioned:
        if len(lines) < _CAPTIONS:
            raise ValueError(f"{image} has {len(lines)} captions; {name}'s protocol takes {_CAPTIONS} of each.")
        data.image_of.extend([len(data.images)] * _CAPTIONS)
        data.images.append(folder / image)
        data.captions.extend(_caption(image, line) for line in lines[:_CAPTIONS])
    if not data.images:
        raise ValueError(f"{name}: no image is named in its file of captions.")
    return data


def _caption(where: Any, caption: str) -> str:
    if not caption.strip():
        raise ValueError(f"{where}: an empty caption. Repair the file.")
    return caption.strip()


def _file(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(f"{str(root)!r} has no {' or '.join(names)}. Give the folder of the benchmark's own files.")
