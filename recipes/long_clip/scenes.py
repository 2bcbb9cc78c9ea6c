"""Rendered scenes with captions made by rule: a world small enough to train a CLIP of its own on.

A scene has a large shape on a patterned ground inside a frame, which its short caption describes, and six small badges
around them like hours of a clock, which only a long caption describes, in one sentence each. Shape and ground share the
words for colours, so understanding a summary takes the order of its words. Scenes and captions are tensors on the
model's device, so there is no loader.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

COLOURS = {
    "red": (0.86, 0.12, 0.12),
    "green": (0.1, 0.62, 0.2),
    "blue": (0.12, 0.25, 0.85),
    "yellow": (0.95, 0.85, 0.1),
    "purple": (0.55, 0.15, 0.7),
    "orange": (0.98, 0.55, 0.08),
    "white": (0.97, 0.97, 0.97),
    "black": (0.05, 0.05, 0.05),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
FRAMES = {
    "pink": (0.98, 0.6, 0.75),
    "cyan": (0.1, 0.85, 0.9),
    "brown": (0.45, 0.25, 0.1),
    "grey": (0.5, 0.5, 0.5),
    "lime": (0.65, 0.95, 0.2),
    "navy": (0.05, 0.08, 0.4),
    "maroon": (0.5, 0.02, 0.15),
    "beige": (0.93, 0.87, 0.7),
}
# Every hour has its own names, so that one word gives an object and its place: a model need not bind a name to an hour.
BADGES = (
    ["apple", "pear", "plum", "cherry", "lemon", "grape", "mango", "peach", "melon", "banana", "fig", "kiwi"],
    ["cat", "dog", "horse", "cow", "sheep", "goat", "pig", "duck", "hen", "fox", "bear", "wolf"],
    ["hammer", "saw", "drill", "wrench", "chisel", "pliers", "axe", "spade", "rake", "shovel", "ladder", "brush"],
    ["violin", "flute", "drum", "harp", "guitar", "piano", "trumpet", "cello", "oboe", "horn", "lute", "tuba"],
    ["car", "bus", "tram", "bike", "truck", "train", "ship", "boat", "canoe", "plane", "sled", "van"],
    ["chair", "table", "bed", "sofa", "desk", "lamp", "shelf", "stool", "bench", "clock", "mirror", "chest"],
)
PATTERNS = ("plain", "striped", "dotted", "checked")
HOURS = ("twelve", "two", "four", "six", "eight", "ten")
CELL, SIDE = 16, 64
# Row and column of each hour among the sixteen cells.
_PLACES = ((0, 2), (1, 3), (3, 3), (3, 1), (2, 0), (0, 0))


@dataclass(frozen=True)
class Scenes:
    """Attributes of N scenes, as indices into the tuples above.

    Args:
        main: [N, 5]: colour and shape of the large shape, pattern, ground and frame.
        small: [N, 6]: the badge at every hour, of twelve.
    """

    main: Tensor
    small: Tensor

    def __len__(self) -> int:
        return self.main.shape[0]

    def __getitem__(self, rows: Tensor) -> Scenes:
        return Scenes(self.main[rows], self.small[rows])


def draw(count: int, generator: torch.Generator, *, alike: int = 1, shared: float = 0.5) -> Scenes:
    """Random scenes on the generator's device.

    Args:
        count: How many; a multiple of `alike`.
        alike: The size of groups of scenes with one summary, which only details tell apart.
        shared: The probability with which a badge is the whole group's.

    Raises:
        ValueError: `count` cannot be cut into groups.
    """
    if alike < 1 or count % alike:
        raise ValueError(f"count={count}, alike={alike}: expected groups of at least 1 that divide count.")
    device, groups = generator.device, count // alike

    def numbers(below: int, *size: int) -> Tensor:
        return torch.randint(below, size, generator=generator, device=device)

    main = torch.stack([numbers(n, groups) for n in (len(COLOURS), len(SHAPES), len(PATTERNS))], -1)
    # a ground that hides nothing: of another colour than the shape
    ground = (main[:, 0] + 1 + numbers(len(COLOURS) - 1, groups)) % len(COLOURS)
    frame = numbers(len(FRAMES), groups)
    main = torch.cat([main, ground[:, None], frame[:, None]], -1).repeat_interleave(alike, 0)
    common = numbers(len(BADGES[0]), groups, len(HOURS)).repeat_interleave(alike, 0)
    own = numbers(len(BADGES[0]), count, len(HOURS))
    keep = torch.rand(count, len(HOURS), generator=generator, device=device) < (shared if alike > 1 else 0.0)
    return Scenes(main, torch.where(keep, common, own))


def render(scenes: Scenes, generator: torch.Generator | None = None) -> Tensor:
    """Pictures, [N, 3, 64, 64] in 0..1; with a generator, each with noise and a brightness of its own."""
    device, count = scenes.main.device, len(scenes)
    palette, frames = _palettes(device)
    ground = palette[scenes.main[:, 3]][:, :, None, None]
    # towards grey, which no ground is: a factor would hide the pattern of a black one
    ground = ground + 0.4 * _patterns(device)[scenes.main[:, 2]][:, None] * (0.5 - ground)
    large = _shapes(2 * CELL, device)[scenes.main[:, 1]][:, None]
    centre = slice(CELL, 3 * CELL)
    picture = ground.expand(count, 3, SIDE, SIDE).clone()
    picture[:, :, centre, centre] += large * (
        palette[scenes.main[:, 0]][:, :, None, None] - picture[:, :, centre, centre]
    )
    hours = torch.arange(len(HOURS), device=device)
    tiles = _badges(device)[hours, scenes.small]
    for hour, (row, column) in enumerate(_PLACES):
        picture[:, :, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = tiles[:, hour]
    edge = torch.ones(SIDE, SIDE, device=device, dtype=torch.bool)
    edge[2:-2, 2:-2] = False
    picture = torch.where(edge, frames[scenes.main[:, 4]][:, :, None, None], picture)
    if generator is not None:
        light = 0.85 + 0.15 * torch.rand(count, 1, 1, 1, generator=generator, device=device)
        noise = torch.randn(picture.shape, generator=generator, device=device)
        picture = (picture * light + 0.03 * noise).clamp(0, 1)
    return picture


@functools.cache
def _palettes(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(list(COLOURS.values()), device=device), torch.tensor(list(FRAMES.values()), device=device)


@functools.cache
def _patterns(device: torch.device) -> Tensor:
    y, x = torch.meshgrid(torch.arange(SIDE, device=device), torch.arange(SIDE, device=device), indexing="ij")
    return torch.stack(
        [
            torch.zeros_like(x, dtype=torch.bool),
            (x + y) % 8 < 3,
            (x % 8 < 3) & (y % 8 < 3),
            (x // 4 + y // 4) % 2 == 0,
        ]
    ).float()


@functools.cache
def _shapes(size: int, device: torch.device) -> Tensor:
    line = (torch.arange(size, device=device) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    radius, inside = (x**2 + y**2).sqrt(), 0.8
    return torch.stack(
        [
            radius < inside,
            (x.abs() < 0.68) & (y.abs() < 0.68),
            (y < 0.7) & (y > -0.75) & (x.abs() < (y + 0.75) * 0.55),
            x.abs() + y.abs() < 0.88,
            ((x.abs() < 0.26) | (y.abs() < 0.26)) & (x.abs() < inside) & (y.abs() < inside),
            (radius < inside) & (radius > 0.42),
        ]
    ).float()


@functools.cache
def _badges(device: torch.device) -> Tensor:
    """[6, 12, 3, 16, 16]: made up, the same every time: a mirrored bitmap in a colour of its own on another."""
    generator = torch.Generator().manual_seed(5)
    count = (len(HOURS), len(BADGES[0]))
    half = torch.rand(*count, 1, CELL // 2, CELL // 4, generator=generator) < 0.5
    drawn = torch.cat([half, half.flip(-1)], -1).repeat_interleave(2, -1).repeat_interleave(2, -2)
    front, back = torch.rand(2, *count, 3, 1, 1, generator=generator)
    return torch.where(drawn, front, back).to(device)
