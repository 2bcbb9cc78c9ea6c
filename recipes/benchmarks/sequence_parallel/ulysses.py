"""Attention of one layer of 9/3 heads on two cards: exchange of heads beside ring and all-gather."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hf_longctx.evaluation.rows import row
from hf_longctx.parallel import Layout
from hf_longctx.parallel.model.choosing import Geometry, choose
from recipes.bars import missed

from ..reading import K
from .launching import Launcher
from .shared import DIM, Shared, drawn
from .train import NOT_MEASURED, TINY_TOKENS
from .world import World

HEADS = (9, 3)
BARS = {32 * K: 1.35, 128 * K: 1.15}
KINDS = ("ring", "gather", "ulysses")
UNEVEN = "a card has 5 of the 9 heads, 1.11 times its share, and a key/value head goes to both"


def work(world: World, tokens: list[int]) -> Iterator[dict[str, Any]]:
    """Milliseconds of every kind, after a check against one card."""
    for length in tokens:
        tensors = drawn(length, HEADS, world)
        layout, runs = Layout.of([length], world.size), 2 if world.tiny else 5
        one = Shared(Layout.of([length], 1), "ring", tensors, world)
        took, off = {"one card": one.times(world, runs)}, {}
        for kind in KINDS:
            shared = Shared(layout, kind, tensors, world)
            off[kind] = shared.off(one, world)
            took[kind] = shared.times(world, runs)
        auto, _ = choose(layout, Geometry(*HEADS, DIM, 0, 30))
        yield {"tokens": length, "ms": took, "off": off, "auto": auto}


def rows(launcher: Launcher, geometry: str, tokens: list[int], lines: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each length: Ulysses over ring."""
    tokens = TINY_TOKENS[:1] if launcher.tiny else tokens or list(BARS)
    for sample in launcher.samples("ulysses", 2, tokens=tokens):
        if "tokens" not in sample:
            yield row("Ulysses on two cards over ring", None, "", why=sample.get("failed", NOT_MEASURED))
            continue
        length, sums = sample["tokens"], {kind: sum(pair) for kind, pair in sample["ms"].items()}
        shown = f"{length // K}k" if length >= K else f"{length} tokens"
        bar = f"<= {BARS[length]}" if length in BARS else None
        beside: dict[str, Any] = {f"{kind}, ms": ms for kind, ms in sums.items()}
        beside |= {f"{kind}, relative error": off for kind, off in sample["off"].items()}
        what = f"9/3 heads of 64, one document of {shown}, two cards: time of Ulysses over ring, forward and backward"
        ratio = sums["ulysses"] / sums["ring"]
        yield row(what, ratio, "", bar=bar, why=missed(ratio, bar, UNEVEN), beside=beside, detail=sample)
