"""Captions of rendered scenes by rule, as token ids: a summary sentence, then a sentence for each badge told."""

# N scenes, S sentences, T tokens, W most tokens of a sentence
from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from .scenes import BADGES, COLOURS, FRAMES, HOURS, PATTERNS, SHAPES, Scenes

# {words in braces} are filled from the scene.
SUMMARIES = (
    "a large {colour} {shape} on a {pattern} {ground} ground inside a {frame} frame .",
    "a {pattern} {ground} ground with a large {colour} {shape} inside a {frame} frame .",
)
PARTS = ("a large {colour} {shape} .", "a picture of a large {colour} {shape} .", "there is a large {colour} {shape} .")
DETAILS = (
    "at {hour} o'clock the badge of the {badge} .",
    "near the edge of the picture , where little else can be seen , there is at {hour} o'clock the badge of the "
    "{badge} .",
    "looking further out , past the large shape in the middle and towards the frame , one also finds at "
    "{hour} o'clock the badge of the {badge} , which is quite small but was drawn with care .",
)
LINES = (*SUMMARIES, *PARTS, *DETAILS)
_FIRST_PART, _FIRST_DETAIL = len(SUMMARIES), len(SUMMARIES) + len(PARTS)
# In the order of Scenes.main, then of a detail.
_SLOTS = {
    "colour": COLOURS,
    "shape": SHAPES,
    "pattern": PATTERNS,
    "ground": COLOURS,
    "frame": FRAMES,
    "hour": HOURS,
    "badge": [badge for hour in BADGES for badge in hour],
}
_FIXED = sorted({word for line in LINES for word in line.split() if not word.startswith("{")})
WORDS = ("<pad>", "<start>", *dict.fromkeys([*(word for words in _SLOTS.values() for word in words), *_FIXED]), "<end>")
PAD, START, END = 0, 1, len(WORDS) - 1
_ID = {word: i for i, word in enumerate(WORDS)}
_WIDEST = max(len(line.split()) for line in LINES)


@dataclass(frozen=True)
class Captions:
    """Token ids, and where each sentence begins.

    Args:
        ids: [N, T], start, words, end, padding.
        starts: [N, S]: the position of each sentence's first token, also where the caption was cut before it.
        lengths: [N]: tokens with start and end, had nothing been cut.
    """

    ids: Tensor
    starts: Tensor
    lengths: Tensor


def short(scenes: Scenes, generator: torch.Generator, limit: int, *, parts: float = 0.0) -> Captions:
    """The summary alone, or, for the share `parts`, a few words of it."""
    lines = _numbers(generator, 0, _FIRST_PART, len(scenes), 1)
    few = _numbers(generator, _FIRST_PART, _FIRST_DETAIL, len(scenes), 1)
    chosen = torch.rand(len(scenes), 1, generator=generator, device=generator.device) < parts
    return write(scenes, torch.where(chosen, few, lines), None, limit)


# What a first training is told by and by: who begins with everything learns the summaries and nothing else for long.
STAGES = ("a few details", "summaries for the most part", "everything")


def web(scenes: Scenes, generator: torch.Generator, limit: int, stage: str = STAGES[-1]) -> Captions:
    """What a first training sees: a few words, the summary, or one to five details, briefly for the most part.

    Like captions of the web: half have fewer than 30 tokens, few come near 77.
    """
    count = len(scenes)
    kind = torch.rand(count, generator=generator, device=generator.device)
    if stage == STAGES[0]:
        kind = 0.5 + kind / 2
    elif stage == STAGES[1]:
        kind = kind * 0.43  # seven of ten are told no detail: 0.3 of 0.43
    told = torch.where(kind < 0.3, 0, _numbers(generator, 1, 4 if stage == STAGES[0] else 6, count))
    summary = _numbers(generator, 0, _FIRST_PART, count)
    first = torch.where(kind < 0.1, _numbers(generator, _FIRST_PART, _FIRST_DETAIL, count), summary)
    first = torch.where(kind > 0.5, -1, first)  # a detail of many scenes is all that is told
    return _told(scenes, first, told, generator, limit, most=5, brief=0.85)


def long(scenes: Scenes, generator: torch.Generator, limit: int) -> Captions:
    """The summary and five or six details in any order: 100 to 240 tokens."""
    count = len(scenes)
    first = _numbers(generator, 0, _FIRST_PART, count)
    return _told(scenes, first, _numbers(generator, 5, 7, count), generator, limit, most=len(HOURS), wordy=2)


def _told(
    scenes: Scenes,
    first: Tensor,
    told: Tensor,
    generator: torch.Generator,
    limit: int,
    *,
    most: int,
    brief: float = 0.0,
    wordy: int = 0,
) -> Captions:
    count = len(scenes)
    order = torch.rand(count, len(HOURS), generator=generator, device=generator.device).argsort(1)[:, :most]
    lines = _numbers(generator, _FIRST_DETAIL, len(LINES), count, most)
    short = torch.rand(count, most, generator=generator, device=generator.device) < brief
    lines = torch.where(short, _FIRST_DETAIL, lines)
    # two sentences at least are long, wherever they stand, so that a long caption has 100 tokens
    rank = torch.rand(count, most, generator=generator, device=generator.device)
    rank = torch.where(torch.arange(most, device=lines.device) < told[:, None], rank, 2.0).argsort(1).argsort(1)
    lines = torch.where(rank < wordy, len(LINES) - 1, lines)
    lines = torch.where(torch.arange(most, device=lines.device) < told[:, None], lines, -1)
    return write(scenes, torch.cat([first[:, None], lines], 1), order, limit)


def write(scenes: Scenes, lines: Tensor, hours: Tensor | None, limit: int) -> Captions:
    """Captions of the sentences chosen, cut at `limit` tokens as CLIP's tokenizer cuts: the end stays.

    Args:
        scenes: N scenes.
        lines: [N, S]: which of LINES each sentence is; -1 for none.
        hours: [N, S - 1]: the hours that the sentences after the first describe; None if there is only one sentence.
        limit: Tokens of the padded result, with start and end.
    """
    device, count = lines.device, len(scenes)
    table, lengths = _table(device)
    # the first sentence tells no detail: what stands in its place is not used
    hours = lines[:, :1] * 0 if hours is None else torch.cat([lines[:, :1] * 0, hours], 1)
    badges = len(BADGES[0]) * hours + scenes.small.gather(1, hours)
    chosen = (*scenes.main[..., None].unbind(1), hours, badges)
    values = torch.stack(
        [words[value].expand(lines.shape) for words, value in zip(_value_ids(device), chosen, strict=True)], -1
    )
    pattern = table[lines]  # N S W; a slot is -1 - its number
    tokens = torch.where(pattern < 0, values.gather(2, (-1 - pattern).clamp(min=0)), pattern)
    size = torch.where(lines < 0, 0, lengths[lines])
    ends = 1 + size.cumsum(1)
    starts = ends - size
    place = starts[..., None] + torch.arange(table.shape[1], device=device)
    used = (torch.arange(table.shape[1], device=device) < size[..., None]) & (place < limit - 1)
    ids = torch.full((count, limit + 1), PAD, device=device)  # one extra column for unused words
    ids.scatter_(1, torch.where(used, place, limit).flatten(1), tokens.flatten(1))
    ids[:, 0] = START
    ids.scatter_(1, ends[:, -1:].clamp(max=limit - 1), END)
    return Captions(ids[:, :limit], starts, ends[:, -1] + 1)


def ids_of(texts: list[str], limit: int, device: torch.device) -> Tensor:
    """[N, limit] token ids of texts in the words of WORDS."""
    ids = torch.full((len(texts), limit), PAD)
    for row, text in zip(ids, texts, strict=True):
        words = [START, *(_ID[word] for word in text.split()), END]
        row[: len(words)] = torch.tensor(words)
    return ids.to(device)


def text_of(ids: Tensor) -> str:
    """The words of one caption, without start, end and padding."""
    return " ".join(WORDS[i] for i in ids.tolist() if i not in (PAD, START, END))


@functools.cache
def _table(device: torch.device) -> tuple[Tensor, Tensor]:
    slots = list(_SLOTS)
    table = torch.full((len(LINES), _WIDEST), PAD)
    for row, line in zip(table, LINES, strict=True):
        for at, word in enumerate(line.split()):
            row[at] = -1 - slots.index(word[1:-1]) if word.startswith("{") else _ID[word]
    return table.to(device), torch.tensor([len(line.split()) for line in LINES], device=device)


@functools.cache
def _value_ids(device: torch.device) -> list[Tensor]:
    return [torch.tensor([_ID[word] for word in words], device=device) for words in _SLOTS.values()]


def _numbers(generator: torch.Generator, low: int, high: int, *size: int) -> Tensor:
    return torch.randint(low, high, size, generator=generator, device=generator.device)
