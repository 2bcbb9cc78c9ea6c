"""The grounds of XL3M's defaults: how well its scores separate facts, and accuracy with other settings."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hf_longctx.evaluation.rows import row
from hf_longctx.generation.xl3m import XL3M
from hf_longctx.generation.xl3m.frame import Frame
from hf_longctx.generation.xl3m.settings import SCORES

from .haystacks import put
from .xl3m_bench import CITIES, NEW_TOKENS, TASKS, Bench, clock, words


def scores(bench: Bench) -> Iterator[dict[str, Any]]:
    """How well each score separates segments with the fact from all others, at the longest of `--lengths`."""
    length, places = bench.args.lengths[-1], max(1, bench.args.trials)
    for task in TASKS:
        parts, _ = bench.prompt(task, length, 0, 1, seed=3)
        hay = bench.hay.make(len(parts.text), seed=3)
        fact = bench.ids(task.fact.format(city=CITIES[3], key="4821367"[: task.digits]))
        # the median is that of segments without a fact only if most have none
        found: dict[str, list[float]] = {name: [] for name in SCORES}
        for chosen in _shared(places, most=max(1, length // 8192)):
            facts = [((i + 0.5) / places, fact) for i in chosen]
            text = put(hay, facts)
            selection = Frame(bench.model, XL3M(), NEW_TOKENS).find(parts._replace(text=text), None)[1]
            at = [round(depth * (len(text) - len(fact))) for depth, _ in facts]
            whole = [[s for s in _starts(len(text)) if s <= a and a + len(fact) <= s + XL3M.segment] for a in at]
            number = {start: i for i, start in enumerate(_starts(len(text)))}
            touched = {n for s, n in number.items() if any(s < a + len(fact) and a < s + XL3M.segment for a in at)}
            others = torch.tensor([n for n in number.values() if n not in touched])
            for name in SCORES:
                value_N = selection.scores[name] * (1 if name == "gain" else -1)
                middle, spread = value_N[others].median(), value_N[others].std()
                best = [max(float(value_N[number[s]]) for s in starts) for starts in whole if starts]
                found[name] += [(value - float(middle)) / float(spread) for value in best]
                found.setdefault(f"{name}: best other", []).append(float((value_N[others].max() - middle) / spread))
        for name in SCORES:
            other = max(found[f"{name}: best other"])
            yield row(
                f"{task.name}, {words(length)} tokens: {name}",
                min(found[name]) / other,
                "x",
                beside={
                    "worst with the fact": min(found[name]),
                    "median with the fact": median(found[name]),
                    "best without": other,
                },
                detail={"facts": len(found[name]), "spreads above the median segment": found[name]},
            )


def _shared(items: int, most: int) -> list[range]:
    return [range(start, items, -(-items // most)) for start in range(-(-items // most))]


def _starts(tokens: int) -> list[int]:
    stride = XL3M.segment - XL3M.overlap
    starts = list(range(0, tokens - XL3M.segment + 1, stride))
    return starts if starts[-1] + XL3M.segment == tokens else [*starts, tokens - XL3M.segment]


GRID: dict[str, XL3M] = {
    "defaults": XL3M(),
    "the paper's entropy": XL3M(score="entropy"),
    "entropy, as many as fit": XL3M(score="entropy", keep=0.0),
    "entropy, as many as fit 6,144 tokens": XL3M(score="entropy", keep=0.0, key_context=6144),
    "question NLL": XL3M(score="question_nll"),
    "question NLL, as many as fit 6,144 tokens": XL3M(score="question_nll", keep=0.0, key_context=6144),
    "gain, as many as fit": XL3M(keep=0.0),
    "gain, as many as fit 6,144 tokens": XL3M(keep=0.0, key_context=6144),
    "gain, up to 6,144 tokens": XL3M(key_context=6144),
    "gain, keep=0.25": XL3M(keep=0.25),
    "gain, keep=0.75": XL3M(keep=0.75),
    "segments of 128": XL3M(segment=128, overlap=16),
    "segments of 512": XL3M(segment=512, overlap=64),
    "overlap of 64": XL3M(overlap=64),
}


def settings(bench: Bench) -> Iterator[dict[str, Any]]:
    """Both tasks at the longest of `--lengths` under other settings, by which the defaults were chosen."""
    length, trials, stop = bench.args.lengths[-1], bench.args.setting_trials, clock(bench.args.seconds)
    with tempfile.TemporaryDirectory() as folder:
        for name, chosen in GRID.items():
            cells = {}
            for task in TASKS:
                if stop():
                    break
                rows, keys, segments = [], [], []
                for i in range(trials):
                    parts, key = bench.prompt(task, length, i, trials, seed=i * 2 // trials)
                    file = Path(folder) / f"{task.name}-{i * 2 // trials}-{chosen.segment}-{chosen.overlap}"
                    context, selection = Frame(bench.model, chosen, NEW_TOKENS).find(
                        parts, None, scores_file=file, compile=bench.args.compile
                    )
                    rows.append([*parts.head, *context, *parts.question])
                    keys.append(key)
                    segments.append(len(selection.kept))
                cells[task.name] = bench.right(rows, keys)
                cells[f"{task.name}: segments kept"] = median(segments)
            if len(cells) == 2 * len(TASKS):
                mean = sum(cells[task.name] for task in TASKS) / len(TASKS)
                yield row(f"{name}, {words(length)} tokens", mean, "", beside=cells, detail={"trials": trials})
