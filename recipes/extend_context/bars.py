"""A run beside its control and its ablation: the rows of a result file, each with what it must reach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hf_longctx.evaluation.rows import row
from recipes.bars import missed

from .compare import longest, measured_at, ratio
from .measure import SAMPLED, TOLD, moved

TOO_SHORT = "the training was too short, or cost what the model could do before"
SELDOM = "few training windows ask across so many tokens"


def rows(ours: dict[str, Any], control: dict[str, Any] | None, ablation: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Of three reports: of the long training, and of the variants `control` and `no_retrieval` where they were run."""
    found = [*perplexities(ours, control), *answers(ours, control), *retrieval(ours, ablation)]
    return found if control is None else [*found[:3], *against(ours, control), *found[3:]]


def perplexities(ours: dict[str, Any], control: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Ours at its longest over the best reader of the trained length, and over itself."""
    curves, stock = ours["after"]["curves"], ours["before"]["curves"]
    far, near = longest(curves), longest(stock)
    readers = {"stock": stock} | ({} if control is None else {"control": control["after"]["curves"]})
    name, one = hardest({name: ratio(curves, far, other, near) for name, other in readers.items()})
    what = f"perplexity, {far:,} tokens over the best reader of {near:,} ({name})"
    # stock alone is a weak reader of these documents: no bar without the control
    bars = (None, None) if control is None else ("<= 0.997", "< 1")
    yield _row(f"{what}, mean", one["mean"], bars[0], one["documents"])
    yield _row(f"{what}, upper end", one["high"], bars[1], {"low": one["low"]})
    own = ratio(curves, far, curves, near)
    yield _row(f"perplexity, {far:,} tokens over itself at {near:,}", own["mean"], "<= 0.998", _beside(own))


def against(ours: dict[str, Any], control: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Ours over the control with scaled positions, and over it within the trained length."""
    curves, tuned = ours["after"]["curves"], control["after"]["curves"]
    far, near = longest(curves), longest(ours["before"]["curves"])
    scaled = {key: ratio(curves, far, found["curves"], far) for key, found in control.get("scaled", {}).items()}
    if scaled:
        name, one = hardest(scaled)
        what = f"perplexity, {far:,} tokens over the control with scaled positions, the best ({name})"
        others = {key: found["mean"] for key, found in scaled.items() if key != name}
        yield _row(what, one["mean"], "<= 0.9", _beside(one) | others)
    for length in sorted(n for n in {*measured_at(curves)} & {*measured_at(tuned)} if n <= near):
        one = ratio(curves, length, tuned, length)
        yield _row(f"perplexity, {length:,} tokens over the control's", one["mean"], "<= 1.01", _beside(one))


def answers(ours: dict[str, Any], control: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """What the stock model's own answers have lost in likelihood; of sampled ones that is the divergence from it."""
    lost, tuned = (moved(one["after"], one["before"]) if one else {} for one in (ours, control))
    for measure, what, bar in ((TOLD, "answers", "<= 0.02"), (SAMPLED, "sampled answers", None)):
        if measure in lost:
            beside = {"control": tuned[measure]} if measure in tuned else {}
            why = missed(lost[measure], bar, "the documents are of other kinds")
            yield row(f"the stock model's {what} to chat prompts, loss over its own", lost[measure], "nats a token",
                      bar=bar, why=why, beside=beside)  # fmt: skip


def retrieval(ours: dict[str, Any], ablation: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Facts found at each length, and at the worst depth."""
    trials = ours["config"]["evaluation"]["trials"]
    for kind in ("passkey", "needle"):
        for length, cells in sorted(ours["after"].get(kind, {}).items(), key=lambda item: int(item[0])):
            right = 100 * sum(cells.values()) / (trials * len(cells))
            other = (ablation or {"after": {}})["after"].get(kind, {}).get(length)
            without = None if other is None else 100 * sum(other.values()) / (trials * len(other))
            beside = {"without retrieval samples": without, "by depth": " ".join(map(str, cells.values()))}
            what = f"{kind}, {int(length):,} tokens"
            yield row(f"{what}: found", right, "%", bar=">= 95", why=missed(right, ">= 95", SELDOM), beside=beside)
            worst = 10 * min(cells.values()) / trials
            why = missed(worst, ">= 7", SELDOM)
            yield row(f"{what}: of ten, at the worst depth", worst, "", bar=">= 7", why=why)


def hardest(ratios: dict[str, Any]) -> tuple[str, Any]:
    """The reference that comes out best beside ours."""
    return max(ratios.items(), key=lambda item: float(item[1]["mean"]))


def _row(what: str, value: float, bar: str | None, beside: dict[str, Any]) -> dict[str, Any]:
    return row(what, value, "", bar=bar, beside=beside, why=missed(value, bar, TOO_SHORT))


def _beside(one: dict[str, Any]) -> dict[str, Any]:
    return {"low": one["low"], "high": one["high"], **one["documents"]}
