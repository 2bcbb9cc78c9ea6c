"""What a CLIP of rendered scenes is asked: near-duplicates by long captions, summaries, classes, one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_longctx.clip.evaluation import Recall, class_embeddings, classify, found, recall

from . import scene_captions as captions
from .scene_captions import DETAILS, LINES, SUMMARIES, Captions
from .scenes import BADGES, COLOURS, HOURS, SHAPES, Scenes, draw, render

ALIKE = 10
FIRST = 1  # the summary decides
POSITIONS = (FIRST, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200)
_TRIES = 1024  # orders and wordings drawn for each caption, to find one whose deciding sentence starts where it should

Embed = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Reader:
    """A model as the tasks see it.

    Args:
        images: Pictures, [N, 3, 64, 64] in 0..1, to normalised embeddings.
        texts: Token ids to normalised embeddings.
        limit: Tokens that it reads; longer captions are cut.
    """

    images: Embed
    texts: Embed
    limit: int


def long_captions(reader: Reader, count: int, device: torch.device) -> Recall:
    """Retrieval among `count` scenes that come in tens with one summary and half of their details."""
    generator = torch.Generator(device).manual_seed(11)
    scenes = draw(count, generator, alike=ALIKE, shared=0.5)
    ids = captions.long(scenes, generator, reader.limit).ids
    return recall(reader.images(render(scenes, generator)), reader.texts(ids))


def short_captions(reader: Reader, count: int, device: torch.device) -> Recall:
    """Retrieval by summary among `count` scenes, no two of which have one summary: luck decides nothing."""
    generator = torch.Generator(device).manual_seed(12)
    scenes = distinct(count, generator)
    ids = captions.short(scenes, generator, min(reader.limit, 20)).ids
    return recall(reader.images(render(scenes, generator)), reader.texts(ids))


def distinct(count: int, generator: torch.Generator) -> Scenes:
    """Scenes with different summaries; ValueError if there are fewer summaries than scenes."""
    drawn = draw(4 * count, generator)
    mains = drawn.main.unique(dim=0)
    if len(mains) < count:
        raise ValueError(f"count={count}: among {4 * count} scenes drawn are only {len(mains)} different summaries.")
    chosen = torch.randperm(len(mains), generator=generator, device=mains.device)[:count]
    return Scenes(mains[chosen], drawn.small[:count])


def zero_shot(reader: Reader, count: int, device: torch.device) -> float:
    """The share of `count` scenes whose large shape and its colour are named right, of 48."""
    generator = torch.Generator(device).manual_seed(13)
    scenes = draw(count, generator)
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    templates = ("a large {} .", "a picture of a large {} .", "there is a large {} .")
    classes = class_embeddings(lambda texts: reader.texts(captions.ids_of(texts, 20, device)), names, templates)
    labels = scenes.main[:, 0] * len(SHAPES) + scenes.main[:, 1]
    return classify(reader.images(render(scenes, generator)), classes, labels, ks=(1,))[1]


def by_position(reader: Reader, count: int, device: torch.device) -> dict[int, float]:
    """R@1 from captions to `count` scenes in tens that one sentence tells apart, by the token at which that starts."""
    shares = {}
    for position in POSITIONS:
        generator = torch.Generator(device).manual_seed(100 + position)
        scenes, told = deciding(count, position, generator, reader.limit)
        hits = found(reader.images(render(scenes, generator)), reader.texts(told.ids))
        shares[position] = float(hits.double().mean())
    return shares


def deciding(count: int, position: int, generator: torch.Generator, limit: int) -> tuple[Scenes, Captions]:
    """Families of ten scenes that one sentence tells apart, which starts as near `position` as can be.

    A family shares the order and the wording of its captions: a summary and all six details. Its scenes differ in
    one badge, or, where the first sentence decides, in the large one.
    """
    device, families = generator.device, count // ALIKE
    rows = torch.arange(families, device=device)
    first = torch.randint(0, len(SUMMARIES), (families, _TRIES, 1), generator=generator, device=device)
    details = torch.randint(
        len(LINES) - len(DETAILS), len(LINES), (families, _TRIES, len(HOURS)), generator=generator, device=device
    )
    lines = torch.cat([first, details], -1)
    sizes = torch.tensor([len(line.split()) for line in LINES] + [0], device=device)[lines]
    away = (1 + sizes.cumsum(-1)[..., :-1] - position).abs()  # how far from it each detail starts
    best = away.flatten(1).argmin(1)
    lines, slot = lines[rows, best // len(HOURS)], best % len(HOURS)
    order = torch.rand(families, len(HOURS), generator=generator, device=device).argsort(1)
    hour = order[rows, slot]

    scenes = draw(families, generator)[rows.repeat_interleave(ALIKE)]
    repeated = (lines.repeat_interleave(ALIKE, 0), order.repeat_interleave(ALIKE, 0))
    main, small = scenes.main.clone(), scenes.small.clone()
    large = position == FIRST
    values = (len(COLOURS) - 1) * len(SHAPES) if large else len(BADGES[0])
    value = torch.rand(families, values, generator=generator, device=device).argsort(1)[:, :ALIKE].flatten()
    if large:
        # never the ground's
        main[:, 0] = (scenes.main[:, 3] + 1 + value // len(SHAPES)) % len(COLOURS)
        main[:, 1] = value % len(SHAPES)
    else:
        small[torch.arange(len(small), device=device), hour.repeat_interleave(ALIKE)] = value
    scenes = Scenes(main, small)
    return scenes, captions.write(scenes, *repeated, limit)


def reader_of(model: torch.nn.Module, limit: int, batch: int = 500) -> Reader:
    """A CLIPModel as a reader, in bfloat16 on a GPU."""
    from hf_longctx.clip.embed import image_embeddings, text_embeddings

    def run(embed: Callable[..., Tensor], inputs: Tensor) -> Tensor:
        device = inputs.device.type
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return F.normalize(torch.cat([embed(model, part).float() for part in inputs.split(batch)]), dim=-1)

    return Reader(
        lambda pictures: run(image_embeddings, 2 * pictures - 1), lambda ids: run(text_embeddings, ids), limit
    )
