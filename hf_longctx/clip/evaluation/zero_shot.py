"""Zero-shot classification: a class is the mean of its name in many templates (Radford et al. 2021, section 3.1.4)."""

# K classes, M templates, I images, D width
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pairs import PICTURES
from .recall import ranks, shares

# Few and general; a benchmark's own (ImageNet's 80) are given by the caller.
TEMPLATES = (
    "a photo of a {}.",
    "a blurry photo of a {}.",
    "a close-up photo of a {}.",
    "a bright photo of the {}.",
    "a drawing of a {}.",
    "a small picture of the {}.",
    "a large picture of the {}.",
)


def class_embeddings(
    embed: Callable[[list[str]], Tensor], names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Tensor:
    """[K, D], normalised: the mean over the templates of the normalised embeddings of a class' name in each.

    Args:
        embed: Texts to their normalised embeddings, [count, D].
        names: The classes, each once.
        templates: Texts with one {} for the name.

    Raises:
        ValueError: No names, a name twice, no templates, or one without its {}.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{len(names)} class names, {len(set(names))} different: expected each once, at least one.")
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise ValueError(f"templates {wrong or 'missing'}: expected texts with one {{}}, such as {TEMPLATES[0]!r}.")
    texts = [template.format(name) for name in names for template in templates]
    return F.normalize(embed(texts).unflatten(0, (len(names), len(templates))).mean(1), dim=-1)


def classify(images: Tensor, classes: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> dict[int, float]:
    """The share of images, [I, D], whose label is among the k nearest of `classes`, [K, D]; k above K is left out."""
    if labels.shape != (len(images),) or not len(images) or int(labels.max()) >= len(classes) or int(labels.min()) < 0:
        raise ValueError(f"labels {list(labels.shape)}: expected {len(images)} numbers from 0 to {len(classes) - 1}.")
    return shares(ranks(images, classes, labels.to(images.device)), [k for k in ks if k <= len(classes)])


def read_classes(folder: str | os.PathLike[str]) -> tuple[list[Path], Tensor, list[str]]:
    """Images, labels and class names of a folder with one folder of images per class; `_` is read as a space."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{str(folder)!r}: there is no such folder. Give one with a folder for each class.")
    images: list[Path] = []
    labels: list[int] = []
    names: list[str] = []
    for one in sorted(path for path in root.iterdir() if path.is_dir()):
        inside = sorted(path for path in one.rglob("*") if path.suffix.lower() in PICTURES)
        if not inside:
            raise ValueError(f"{str(one)!r} has no images. Fill it, or remove it.")
        images += inside
        labels += [len(names)] * len(inside)
        names.append(one.name.replace("_", " "))
    if len(names) < 2:
        raise ValueError(f"{str(folder)!r} has {len(names)} folders of images; classification needs two at least.")
    return images, torch.tensor(labels), names
