"""What gates let through and what they cost: recall and the next text of every gate and margin, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean
from typing import Any

from hf_longctx.evaluation.rows import row
from hf_longctx.methods.code_lookup import CHOICES

from .asking import SINGLE, Answers, answers
from .run import Run

MARGINS = (-2.0, -1.0, -0.5, 0.0, 1.0, 2.0, 4.0)  # nats, of gate="score"


def gate(run: Run) -> Iterator[dict[str, Any]]:
    """Every gate that the method has, that by scores with each margin: numbers and pass keys, and the next text.

    All of them read the same documents, one after another, until there are enough or the time is over.
    """
    methods, refused = _gates(run)
    found = {name: Answers() for name in ("LM-Infinite", *methods)}
    kinds, texts = {kind: n for kind, n in run.sizes.kinds if kind in SINGLE}, 0
    for one in run.long(kinds, 2):
        if texts and run.time_is_over:
            break
        for name, method in {"LM-Infinite": run.window, **methods}.items():
            got = answers(run.model, run.encode, method, [one], chunk=run.sizes.chunk, together=True)
            found[name].add(got)
        texts += 1
    window = found.pop("LM-Infinite")
    for name in (*methods, *refused):
        what = f"{run.reader}, {run.length}, {name}: numbers and pass keys, right"
        if name in refused:
            yield row(what, None, "", why=refused[name])
            continue
        got = found[name]
        right = [one for kind in SINGLE for one in got.right.get(kind, [])]
        over = got.perplexity() / window.perplexity()
        worst = max(math.exp(one - own) for one, own in zip(got.text, window.text, strict=True))
        print(f"{name}: {fmean(right):.3f} of {len(right)} right, next text {over:.4f} x LM-Infinite's", flush=True)
        beside = {
            "perplexity of next text, over LM-Infinite's": over, "of the worst text": worst,
            "questions": len(right), "texts": texts, "right, LM-Infinite": window.share(*SINGLE),
        }  # fmt: skip
        yield row(what, got.share(*SINGLE), "", beside=beside | {kind: got.share(kind) for kind in SINGLE},
                  detail=got.detail() | {"nats of next text, LM-Infinite": window.text})  # fmt: skip


def _gates(run: Run) -> tuple[dict[str, Any], dict[str, str]]:
    """The methods by the settings of their gates, and why there is none of some."""
    methods: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for kind in (None, *(one for one in CHOICES["gate"] if one is not None)):  # without one first
        if kind == "score":
            for margin in MARGINS:
                methods[f"gate='score', gate_margin={margin:g}"] = replace(run.lookup, gate=kind, gate_margin=margin)
        elif kind == "heads":
            try:
                methods["gate='heads'"] = run.retrieving
            except ValueError as error:  # no head retrieves
                refused["gate='heads'"] = str(error)
        else:
            methods[f"gate={kind!r}"] = replace(run.lookup, gate=kind, gate_margin=0.0)
    return methods, refused
