"""The log-probability of every token of a pack beside that of its document alone: ours, and accelerate's leak."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hf_longctx import SequenceParallel
from hf_longctx.evaluation.rows import row

from .geometry import build
from .launching import Launcher
from .lines import Line, layout_of
from .packs import batch, pack, sizes
from .rival import Rival
from .world import World

BOUND = 2e-2  # relative: 8 bits, through all layers
ROUNDING = "bfloat16: one card is as far from each document alone"
WAYS = {"balance": Line("auto"), "cut all": Line("auto", cut="all"), "global zigzag": Line("auto", cut="global")}


@torch.no_grad()
def work(world: World, geometry: str, rival: bool) -> Iterator[dict[str, Any]]:
    """How far the log-probabilities of a pack are off, of every layout or of accelerate."""
    model, lengths = build(geometry, world), pack(*_first(world.tiny))
    given = batch(lengths, model.config.vocab_size, world)
    parts = [dict(zip(given, part, strict=True)) for part in zip(*(x.split(lengths, 1) for x in given.values()))]  # noqa: B905
    alone = torch.cat([model(**part, use_cache=False).logits for part in parts], 1)
    if rival:
        yield {"off": {"accelerate": away(Rival(model, world).log_probs(given), alone)}}
        return
    found = {}
    with SequenceParallel(degree=1, gather_logits=True).on(model):
        found["one card, hf_longctx"] = away(model(**given).logits, alone)
    for name, line in WAYS.items():
        cut = "all" if line.cut == "all" else "balance"
        switch = SequenceParallel(degree=world.size, cut=cut, gather_logits=True)
        with layout_of(line), switch.on(model):
            found[name] = away(model(**given).logits, alone)
    yield {"off": found}


def _first(tiny: bool) -> tuple[int, int, float]:
    total, mean_log = sizes(tiny)
    return total, 0, mean_log


def away(mine: Tensor, alone: Tensor) -> float:
    """The difference relative to how much the log-probabilities vary; a label that is ignored has 0 in both."""
    a, b = (x.double()[alone != 0] for x in (mine, alone))
    return float((a - b).norm() / (b - b.mean()).norm())


def rows(launcher: Launcher, geometry: str) -> Iterator[dict[str, Any]]:
    """One row: ours, with the others beside it."""
    off: dict[str, float | None] = {"balance": None, "accelerate": None}
    why = None
    for rival in (False, True):
        for sample in launcher.samples("packed_exact", 2, geometry=geometry, rival=rival):
            off |= sample.get("off", {})
            why = why if rival else sample.get("failed")
    ours, one_card = off.pop("balance"), off.get("one card, hf_longctx")
    if why is None and ours is not None and one_card is not None and BOUND < ours <= 1.1 * one_card:
        why = ROUNDING
    what = f"{geometry}, a pack of {sizes(launcher.tiny)[0]:,} tokens: relative error of log-probabilities against each"
    yield row(f"{what} document alone, cut='balance'", ours, "", bar=f"<= {BOUND}", why=why, beside=off)
