"""Whole steps with attention kept from recomputation, over those that recompute it."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from hf_longctx.evaluation.rows import row

from ..reading import K
from .launching import Launcher
from .train import NOT_MEASURED, TINY_TOKENS, measured, single

LENGTH, BAR = 128 * K, 1.15
LINES_OF_IT = ("auto, FSDP2", "attention kept")


def rows(launcher: Launcher, geometry: str, tokens: list[int], lines: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each length, 128k by default."""
    tokens = TINY_TOKENS[:1] if launcher.tiny else tokens or [LENGTH]
    found = measured(launcher, geometry, list(LINES_OF_IT), single(tokens))
    for length in tokens:
        again, kept = (found[name].get(str(length), {}) for name in LINES_OF_IT)
        seconds = [median(one["seconds"]) if "seconds" in one else None for one in (again, kept)]
        ratio = seconds[0] / seconds[1] if all(seconds) else None  # type: ignore[operator]
        why = None if ratio else kept.get("failed") or again.get("failed") or NOT_MEASURED
        shown = f"{length // K}k" if length >= K else f"{length} tokens"
        what = f"{geometry}, one document of {shown}, two cards: tokens/s with attention kept from recomputation"
        what += " over attention recomputed"
        beside = {"recomputed, s": seconds[0], "kept, s": seconds[1]}
        beside |= {"recomputed, GiB": again.get("GiB"), "kept, GiB": kept.get("GiB")}
        bar = f">= {BAR}" if length == LENGTH else None
        yield row(what, ratio, "", bar=bar, why=why, beside=beside, detail={"recomputed": again, "kept": kept})
