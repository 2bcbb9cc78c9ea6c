"""LMInfinite(top_k=5) beside an older source tree, whose look-up was one matrix of scores over all keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hf_longctx.evaluation.rows import row
from recipes.bars import missed

from ..paired_decode import Worker
from ..tables import ROOT
from .run import Run

Rows = Iterator[dict[str, Any]]
WITHOUT = "it is compared with an older source tree: --older DIR, made by `git worktree add DIR 74aae7d`"


def older(run: Run) -> Rows:
    """Reading and the time of a token, each tree in a process of its own, in turn."""
    scale, tiny = run.sizes.scale, run.model.device.type != "cuda"
    asked = {name: f"{name} {n}" for name, n in zip(("read", "write"), scale.older, strict=True)}
    taken: dict[str, dict[str, float]] = {}
    if run.older is not None:
        run.free()
        for tree, path in (("older", run.older), ("this", ROOT)):
            worker = Worker(path, tiny, "looking_up")
            try:
                worker.ready()
                worker.sample(asked["read"])  # compiles kernels
                taken[tree] = {name: worker.sample(words) for name, words in asked.items()}
            finally:
                worker.close()
    for name, what, unit, better, bar, why in (
        ("read", f"reading {scale.older[0]:,} tokens: time over the older tree's", "s", False, "<= 1.0",
         "tables of found keys are made for every query"),
        ("write", f"a token after {scale.older[1]:,}: times faster than the older tree", "ms", True, ">= 10",
         "each token reads all keys"),
    ):  # fmt: skip
        values = {f"{tree} tree, {unit}": of[name] for tree, of in taken.items()}
        mine, theirs = (taken.get(tree, {}).get(name) for tree in ("this", "older"))
        ratio = None if mine is None or theirs is None else theirs / mine if better else mine / theirs
        yield row(f"LMInfinite(top_k=5), {what}", ratio, "x", bar=bar, beside=values,
                  why=missed(ratio, bar, WITHOUT if run.older is None else why))  # fmt: skip
