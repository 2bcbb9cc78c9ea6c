"""Attention of one layer over packs of documents, laid out in three ways on two cards, and on one."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean
from typing import Any

from hf_longctx.evaluation.rows import row
from hf_longctx.parallel import Layout
from hf_longctx.parallel.model.choosing import Geometry, choose

from .launching import Launcher
from .packs import GlobalZigzag, pack, sizes
from .shared import BOUND, DIM, Shared, drawn
from .world import World

HEADS, SEEDS = (32, 8), 20
MEAN_BAR, WORST_BAR = 1.12, 1.35
WAYS = ("balance", "cut all", "global zigzag")
GEOMETRY = Geometry(*HEADS, DIM, windows=0, layers=16)


def layouts(lengths: list[int], ranks: int) -> dict[str, Layout]:
    """Of a pack, by name."""
    made = Layout.of(lengths, ranks), Layout.of(lengths, ranks, "all"), GlobalZigzag.of(lengths, ranks)
    return dict(zip(WAYS, made, strict=True))


def work(world: World) -> Iterator[dict[str, Any]]:
    """Milliseconds of forward and backward of every pack, after a check against one card."""
    total, mean_log = sizes(world.tiny)
    for seed in range(2 if world.tiny else SEEDS):
        lengths = pack(total, seed, mean_log)
        tensors, runs = drawn(total, HEADS, world, seed), 3
        one = Shared(Layout.of(lengths, 1), "gather", tensors, world)
        took, off, kinds = {"one card": one.times(world, runs)}, {}, {}
        for name, layout in layouts(lengths, world.size).items():
            kinds[name], _ = choose(layout, GEOMETRY)  # as kind="auto" does
            shared = Shared(layout, kinds[name], tensors, world)
            off[name] = shared.off(one, world)
            took[name] = shared.times(world, runs)
        yield {"seed": seed, "lengths": lengths, "kinds": kinds, "ms": took, "off": off}


def rows(launcher: Launcher) -> Iterator[dict[str, Any]]:
    """The mean and the worst pack of global zigzag over ours, ours over one card, and exactness."""
    samples = list(launcher.samples("packed_attention", 2))
    packs = [one for one in samples if "ms" in one]
    why = next((one["failed"] for one in samples if "failed" in one), None)
    what = f"{len(packs)} packs of {sizes(launcher.tiny)[0]:,} tokens, documents of about 6k, attention of 32/8 heads"
    if not packs:
        yield row(what, None, "", why=why)
        return
    sums = {name: [sum(one["ms"][name]) for one in packs] for name in packs[0]["ms"]}
    ratios = {name: [a / b for a, b in zip(sums["global zigzag"], ms, strict=True)] for name, ms in sums.items()}
    ours, beside = ratios["balance"], {f"{name}, ms": mean(ms) for name, ms in sums.items()}
    also = {"cut all over it": mean(ratios["cut all"])}
    detail = {"packs": packs}
    named = f"{what}: time of global zigzag over cut='balance'"
    yield row(f"{named}, mean", mean(ours), "", bar=f">= {MEAN_BAR}", why=why, beside=beside | also, detail=detail)
    yield row(f"{named}, the most", max(ours), "", bar=f">= {WORST_BAR}", why=why, beside={"least": min(ours)})
    gains = [a / b for a, b in zip(sums["one card"], sums["balance"], strict=True)]
    spread = {"least": min(gains), "most": max(gains)}
    yield row(f"{what}: one card over two with cut='balance', the same kernels, mean", mean(gains), "", beside=spread)
    worst = {name: max(one["off"][name] for one in packs) for name in WAYS}
    ours_off = worst.pop("balance")
    named = f"{what}: relative error of output and gradients against one card, the worst, cut='balance'"
    yield row(named, ours_off, "", bar=f"<= {BOUND}", beside=worst)
