"""What a run has shown, in rows beside their bars: each figure of a trained model with those of the untrained one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

from hf_longctx.evaluation import length_baselines
from hf_longctx.evaluation.rows import row
from recipes.long_writer.compare import gains, values

Lines = dict[str, dict[str, Any]]
UNTRAINED, BANNED = "untrained", "untrained, end token banned"
# share of answers that are exact, and right before the first error, by tokens of the answer
BARS = {500: (">= 0.6", ">= 0.85"), 2000: (">= 0.3", ">= 0.6"), 8000: (None, ">= 0.5")}
WRITING = {"counted": ">= 0.85", "plain": ">= 0.6"}
REINFORCED = WRITING | {"plain": ">= 0.75"}
OFF = "<= 1.25"  # from 0.8 to 1.25 times the asked words
MORE_REPEATED = 0.03  # 8-grams, above the text's own share


def rows(lines: Lines, name: str) -> Iterator[dict[str, Any]]:
    """The rows of one trained model.

    Args:
        lines: Scores by name: `UNTRAINED`, perhaps `BANNED`, and trained models, in order.
        name: Of the model.
    """
    ours = lines[name]
    for tokens in dict.fromkeys(cell["tokens"] for cell in ours["tasks"]):
        exact, share = BARS.get(tokens, (None, None))
        yield _mean(lines, name, "tasks", "exact", f"answers of {tokens} tokens that are exact", exact, tokens=tokens)
        what = f"share of answers of {tokens} tokens right before the first error"
        yield _mean(lines, name, "tasks", "share", what, share, tokens=tokens)
        yield _mean(lines, name, "tasks", "ended", f"answers of {tokens} tokens that ended", None, tokens=tokens)
    for form in dict.fromkeys(cell["form"] for cell in ours["writing"]):
        what = f"S_l, 0 for unended, writing ({form})"
        bar = (REINFORCED if name == "grpo" else WRITING).get(form)
        yield _mean(lines, name, "writing", "ended_length", what, bar, form=form)
        yield _mean(lines, name, "writing", "ended", f"writing that ended ({form})", ">= 0.95", form=form)
    for cell in ours["writing"]:
        place = f"{cell['form']}, {cell['asked']} words asked"
        ratio = statistics.median(cell["ratio"])
        off = max(ratio, 1 / ratio) if ratio else math.inf
        beside = {"written over asked": ratio}
        yield row(f"{name}: median of written over asked, or its inverse, {place}", off, "", bar=OFF, beside=beside)
        own = statistics.fmean(cell["text repeated"])
        repeated, most = statistics.fmean(cell["repeated"]), own + MORE_REPEATED
        yield row(f"{name}: repeated 8-grams, {place}", repeated, "", bar=f"<= {most:.4f}", beside={"the text": own})


def gained(lines: Lines, name: str, before: str) -> Iterator[dict[str, Any]]:
    """What a training gained over the model that it began with: the lower end of the paired interval is above 0."""
    for what, one in gains(lines[name], lines[before]).items():
        if what.endswith("repeated"):
            yield row(f"{name} over {before}, {what}, upper end", one["high"], "", bar="<= 0.01", detail=one)
        else:
            yield row(f"{name} over {before}, {what}, lower end", one["low"], "", bar="> 0", detail=one)
    losses = [lines[line].get("loss on held-back answers") for line in (name, before)]
    if None not in losses:
        ratio = math.exp(losses[0] - losses[1])
        yield row(f"{name} over {before}, perplexity of held-back answers", ratio, "", bar="<= 1.01")


def risen(name: str, rewards: list[float | None]) -> Iterator[dict[str, Any]]:
    """The mean reward of the last quarter of a reinforcement's steps, less that of the first; no row for few steps."""
    some = [reward for reward in rewards if reward is not None]
    if quarter := len(some) // 4:
        first, last = statistics.fmean(some[:quarter]), statistics.fmean(some[-quarter:])
        what = f"{name}: reward of the last {quarter} steps, less that of the first {quarter}"
        yield row(what, last - first, "", bar="> 0", beside={"first": first, "last": last}, detail={"rewards": some})


def _mean(lines: Lines, name: str, what: str, score: str, said: str, bar: str | None, **of: Any) -> dict[str, Any]:
    found = {line: values(scores, what, score, **of) for line, scores in lines.items()}
    means = {line: statistics.fmean(some) for line, some in found.items() if some}
    beside = {line: value for line, value in means.items() if line != name}
    if score == "ended_length":
        asked = [cell["asked"] for cell in lines[name][what] if cell["form"] == of["form"]]
        beside |= length_baselines(asked)
    prompts = {line: len(some) for line, some in found.items() if some}
    detail: dict[str, Any] = {"prompts": prompts.pop(name)}
    if fewer := {line: number for line, number in prompts.items() if number != detail["prompts"]}:
        detail["prompts of others"] = fewer  # whose sizes there was no time for
    return row(f"{name}: {said}", means[name], "", bar=bar, beside=beside, detail=detail)
