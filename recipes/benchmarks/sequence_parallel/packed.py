"""Packed documents on two cards: attention alone, whole steps, and whether documents see each other."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean
from typing import Any

from hf_longctx.evaluation.rows import row

from . import packed_attention, packed_exact
from .launching import Launcher
from .lines import ONE_OURS
from .packs import pack, sizes
from .train import NOT_MEASURED, measured, over

BARS = {"global zigzag": 1.06, ONE_OURS: 1.75}
OURS, LINES_OF_IT = "auto, FSDP2", (ONE_OURS, "auto, FSDP2", "global zigzag", "cut all")
PACKS = 4


def rows(launcher: Launcher, geometry: str, tokens: list[int], lines: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of attention alone, of exactness, and of whole steps."""
    yield from packed_attention.rows(launcher)
    yield from packed_exact.rows(launcher, geometry)
    yield from steps(launcher, geometry)


def steps(launcher: Launcher, geometry: str) -> Iterator[dict[str, Any]]:
    """Tokens per second of ours over the other ways, the mean of packs."""
    total, mean_log = sizes(launcher.tiny)
    packs = {str(seed): pack(total, seed, mean_log) for seed in range(1 if launcher.tiny else PACKS)}
    found = measured(launcher, geometry, list(LINES_OF_IT), packs)
    detail = {"packs": packs, "measured": found}
    for base in ("global zigzag", ONE_OURS, "cut all"):
        pairs = [over({name: of.get(key, {}) for name, of in found.items()}, OURS, base) for key in packs]
        ratios = [ratio for ratio, _ in pairs if ratio is not None]
        why = next((reason for _, reason in pairs if reason), None)
        bar = f">= {BARS[base]}" if base in BARS else None
        what = (
            f"{geometry}, {len(packs)} packs of {total:,} tokens: tokens/s with cut='balance' on two cards over {base}"
        )
        value = mean(ratios) if ratios else None
        spread = {"least": min(ratios), "most": max(ratios)} if ratios else {}
        why = why or (None if ratios else NOT_MEASURED)
        yield row(f"{what}, mean", value, "", bar=bar, why=why, beside=spread, detail=detail)
        detail = {}
