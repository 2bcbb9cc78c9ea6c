"""The parts of the benchmark: each yields rows about one reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import fmean
from typing import Any

from hf_longctx.evaluation.perplexity import fixed_targets
from hf_longctx.evaluation.rows import row
from recipes.bars import missed

from .asking import SINGLE, Answers, answers, document
from .blocks import SIGNS, Watch
from .facts import KINDS
from .gates import gate
from .run import Run
from .tasks import ruler
from .writing import written

Rows = Iterator[dict[str, Any]]
NOTHING_INSIDE = "the reader answers nothing inside its window"
FEW = "the reader has not enough questions right inside its window to tell a method by"
LOST = "fewer answers survive the distance"
CHANCE = "keys that only score by chance cost the text"


def text_perplexity(run: Run) -> float:
    """Perplexity of the model without a method on texts inside 4k, which no reader was taught with."""
    length = max(run.sizes.inside[0])
    texts = [run.texts.make(length, seed) for seed in range(8)]
    return fixed_targets(run.model, texts, [length], n_targets=length // 2)[0].perplexity


def inside(run: Run) -> Rows:
    """Does the reader answer inside its window, and is it still a model of text?"""
    got = run.inside
    for kind in KINDS:
        bar = ">= 0.98" if run.tuned and kind != "chain" else None
        what = f"{run.reader}: {kind}, right inside its window, wordings that it was not taught"
        beside = {"nats per token": _mean(got, kind), "questions": len(got.right[kind])}
        yield row(what, got.share(kind), "", bar=bar, why=missed(got.share(kind), bar, "taught too little"),
                  beside=beside, detail=got.detail() | {"lesson": run.lesson})  # fmt: skip
    if run.lesson is not None:
        assert run.untaught is not None
        loss, ratio = run.lesson["answers' loss"], text_perplexity(run) / run.untaught
        yield row(f"{run.reader}: loss of its answers when the lesson ended", loss, "nats", bar="<= 0.005",
                  why=missed(loss, "<= 0.005", "the time or the steps were over"), detail=run.lesson)  # fmt: skip
        yield row(f"{run.reader}: perplexity of text, over that before the lesson", ratio, "", bar="<= 1.02",
                  why=missed(ratio, "<= 1.02", "the lesson changed it"), beside={"before": run.untaught})  # fmt: skip


def recall(run: Run) -> Rows:
    """Many facts in one text: codes of keys, all keys, and the window alone."""
    every = {"window alone": run.window_only, "all keys": run.ask(run.keys), "codes": run.found}
    values = {name: run.over_inside(got) for name, got in every.items()}
    bar = run.bar(">= 0.95", ">= 0.8")
    what = f"{run.reader}, {run.length}: numbers and pass keys right, over the same reader inside its window"
    detail = {name: got.detail() for name, got in every.items()}
    beside = {"all keys": values["all keys"], "window alone": values["window alone"]}
    beside["questions"] = sum(len(run.found.right[kind]) for kind in SINGLE)
    yield row(what, values["codes"], "", bar=bar, why=_lost(run, values["codes"], bar), beside=beside, detail=detail)
    codes, keys = (every[name].share(*SINGLE) for name in ("codes", "all keys"))
    less = codes - keys if codes is not None and keys is not None else None
    bar = run.bar(">= -0.03", ">= -0.03")
    what = f"{run.reader}, {run.length}: numbers and pass keys right by codes, less those by all keys"
    yield row(what, less, "", bar=bar, why=missed(less, bar, "the shortlist of codes misses keys"))
    for kind in KINDS:
        beside = {name: got.share(kind) for name, got in every.items() if name != "codes"}
        beside |= {f"nats, {name}": _mean(got, kind) for name, got in every.items()}
        beside |= {"inside its window": run.inside.share(kind)}
        yield row(f"{run.reader}, {run.length}: {kind}, right", run.found.share(kind), "", beside=beside)


def passkey(run: Run) -> Rows:
    """One pass key at each depth of a text of its own."""
    depths, n = run.sizes.passkeys
    places = [i / (depths - 1) for i in range(depths)]
    found: dict[str, list[float]] = {}
    for name, method in (("all keys", run.keys), ("codes", run.lookup)):
        for i, depth in enumerate(places):
            texts = (
                document(run.encode, run.texts, {"pass key": 1}, run.sizes.length, 2000 + i * n + j, depth=depth)
                for j in range(n)
            )
            got = answers(run.model, run.encode, method, texts, chunk=run.sizes.chunk)
            found.setdefault(name, []).append(got.share("pass key") or 0.0)
    codes, keys = fmean(found["codes"]), fmean(found["all keys"])
    bar = run.bar(">= 0.98", ">= 0.8")
    yield row(f"{run.reader}, {run.length}: a pass key, right", codes, "", bar=bar, why=_lost(run, codes, bar),
              beside={"all keys": keys, "texts": depths * n}, detail={"by depth": found, "depths": places})  # fmt: skip


def chains(run: Run) -> Rows:
    """Chains, in texts read with look-ups and without."""
    kinds = {"chain": run.sizes.chains}
    own = answers(run.model, run.encode, None, run.short(kinds), chunk=run.sizes.chunk).share("chain")
    got = {
        reads: answers(run.model, run.encode, run.lookup, run.long(kinds, 1), reads=reads, chunk=run.sizes.chunk)
        for reads in ("without", "with")
    }
    right = {reads: one.share("chain") for reads, one in got.items()}
    over = {reads: value / own if own and value is not None else None for reads, value in right.items()}
    bar = run.bar(">= 0.5")
    what = f"{run.reader}, {run.length}: chains right, the text read with look-ups, over the reader inside its window"
    why = NOTHING_INSIDE if not own else missed(over["with"], bar, "links are found, and chains seldom")
    beside = {"read without look-ups": over["without"], "inside its window, right": own}
    detail = {reads: one.detail() for reads, one in got.items()}
    yield row(what, over["with"], "", bar=bar, why=why, beside=beside, detail=detail)


def text(run: Run) -> Rows:
    """What look-ups cost the text that asks nothing."""
    ungated = run.ask(replace(run.lookup, gate=None))
    ratio = run.found.perplexity() / run.window_only.perplexity()
    bar = run.bar("<= 1.005", "<= 1.02")
    beside = {"without a gate": ungated.perplexity() / run.window_only.perplexity()}
    beside |= {"LM-Infinite's perplexity": run.window_only.perplexity()}
    detail = {"gate": run.found.text, "without": ungated.text, "LM-Infinite": run.window_only.text}
    yield row(f"{run.reader}, {run.length}: perplexity of the next text, over LM-Infinite's", ratio, "", bar=bar,
              why=missed(ratio, bar, CHANCE), beside=beside, detail=detail)  # fmt: skip


def blocks(run: Run) -> Rows:
    """How often the best far key is among those chosen."""
    method = replace(run.lookup, gate="score", by="signs")  # what is watched looks up behind its gate
    assert method.n_local is not None
    watch = Watch(method.n_local, method.n_global)
    run.ask(method, watch=watch.on)
    shares = watch.shares()
    signs, blocks = shares["signs"], shares["blocks"]
    ratio = signs / blocks if signs is not None and blocks else None
    what = f"{run.reader}, {run.length}: best far key among {SIGNS} keys by signs, over 256 tokens in blocks of 64"
    why = "no query has attention to spare beyond its window, or no block holds its key" if ratio is None else None
    bar = run.bar(">= 1.2")
    yield row(what, ratio, "", bar=bar, why=why or missed(ratio, bar, "blocks hold it as often"), beside=shares,
              detail={"queries": watch.found["queries"], "blocks by": "the mean of their keys"})  # fmt: skip


def read_at(run: Run) -> Rows:
    """Distances at which found tokens are read, from an eighth of the window to its end."""
    assert run.lookup.n_local is not None
    for part in (8, 4, 2, 1):
        at = max(run.lookup.n_local // part, 1)
        yield _sides(run, f"read_at={at} (1/{part} of the window)", replace(run.lookup, read_at=at))


def top_k(run: Run) -> Rows:
    """Numbers of looked-up keys."""
    for k in (5, 8, 16, 64):
        yield _sides(run, f"top_k={k}", replace(run.lookup, top_k=k))


PARTS: dict[str, Callable[[Run], Rows]] = {
    part.__name__: part
    for part in (inside, recall, passkey, chains, text, blocks, written, ruler, gate, read_at, top_k)
}


def _sides(run: Run, name: str, method: Any) -> dict[str, Any]:
    got = run.found if method == run.lookup else run.ask(method)
    over = got.perplexity() / run.window_only.perplexity()
    beside = {kind: got.share(kind) for kind in KINDS} | {"perplexity of next text, over LM-Infinite's": over}
    beside |= {f"nats, {kind}": _mean(got, kind) for kind in SINGLE}
    what = f"{run.reader}, {run.length}, {name}: numbers and pass keys, right"
    return row(what, got.share(*SINGLE), "", beside=beside, detail=got.detail())


def _mean(got: Answers, kind: str) -> float:
    return fmean(got.nats[kind])


def _lost(run: Run, value: float | None, bar: str | None) -> str | None:
    if value is None:
        return NOTHING_INSIDE
    return missed(value, bar, LOST if (run.inside.share(*SINGLE) or 0) >= 0.98 else FEW)
