"""Random edits of CPython's standard library, for the PIE benchmark."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KINDS = ("insert", "delete", "replace", "several places")
MOST = 64  # tokens of one edit
PLACES = 3  # of an edit that changes several


@dataclass(frozen=True)
class Edit:
    """A text before and after. `text` numbers the old texts, which several edits share.

    Attributes:
        spans: the places of the new text at which something is new or was deleted, (start, end) each.
    """

    text: int
    kind: str
    old: Tensor
    new: Tensor
    spans: tuple[tuple[int, int], ...]
    changed: tuple[Tensor, ...]  # the deleted and the new tokens, with a token on either side


def edits(tokenizer: Any, length: int, count: int, per_text: int, seed: int) -> Iterator[Edit]:
    """`count` edits of texts of `length` tokens: 1 to 64 tokens at random places, `per_text` edits of each text."""
    source = random.Random(seed)
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(library.glob("*.py")) if path.stat().st_size > 6 * length]
    source.shuffle(files)
    made = number = 0
    while made < count:
        content = files[number % len(files)].read_text(encoding="utf-8", errors="replace")
        ids = tokenizer(content, return_tensors="pt", verbose=False).input_ids[0]
        if len(ids) < length + 2 * MOST:
            files.pop(number % len(files))
            continue
        start = source.randrange(len(ids) - length)
        old = ids[start : start + length]
        for _ in range(min(per_text, count - made)):
            yield _edit(source, number, old, ids, KINDS[made % len(KINDS)])
            made += 1
        number += 1


def _edit(source: random.Random, text: int, old: Tensor, donor: Tensor, kind: str) -> Edit:
    places = 1 if kind != "several places" else PLACES
    kinds = [kind] if places == 1 else source.choices(KINDS[:3], k=places)
    # from the last place to the first, so that earlier ones stay where they are
    at = sorted(source.sample(range(1, len(old) - MOST), places), reverse=True)
    new, spans, changed = old, [], []
    before = len(old)
    for place, how in zip(at, kinds, strict=True):
        room = min(MOST // places, before - place)
        gone = 0 if how == "insert" else source.randint(1, room)
        come = 0 if how == "delete" else source.randint(1, MOST // places)
        begin = source.randrange(len(donor) - MOST)
        changed.append(new[place - 1 : place + gone + 1])
        new = torch.cat([new[:place], donor[begin : begin + come], new[place + gone :]])
        spans = [(place, place + come), *((a + come - gone, b + come - gone) for a, b in spans)]
        changed.append(new[place - 1 : place + come + 1])
        before = place
    return Edit(text, kind, old, new, tuple(spans), tuple(changed))
