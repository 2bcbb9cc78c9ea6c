"""Tokens per second of a plain loop over one document, on two cards over one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from statistics import median
from typing import Any

from hf_longctx.evaluation.rows import row
from recipes.bars import missed
from recipes.cards import free

from ..reading import K
from .launching import Launcher
from .lines import LINES, ONE, ONE_OURS, RIVAL, Loop
from .packs import batch
from .world import World

TOKENS = [8 * K, 32 * K, 64 * K, 128 * K]
TINY_TOKENS = [97, 160]
FEW = 64 * K  # from here on a step takes seconds; below, the host's part varies from one to the next
BARS = {
    "Llama 1.24B": {8 * K: 1.4, 32 * K: 1.84, 64 * K: 1.92, 128 * K: 1.95},
    "SmolLM2-135M": {32 * K: 1.65, 128 * K: 1.93},
}
OURS = ("auto, FSDP2", "auto, DDP")
ALL = (ONE, ONE_OURS, *OURS, "ring, FSDP2", "gather, FSDP2", "ulysses, FSDP2", RIVAL)
ONE_FUSED = "one card, fused norms"
FUSED = (ONE_FUSED, "fused norms, FSDP2", "fused norms, DDP")
NOT_MEASURED = "one of the two was not measured"


def work(world: World, geometry: str, lines: list[str], packs: dict[str, list[int]]) -> Iterator[dict[str, Any]]:
    """Seconds of steps of every line and pack of documents."""
    for name in lines:
        loop = None
        for key, lengths in packs.items():
            sample: dict[str, Any] = {"line": name, "pack": key, "tokens": sum(lengths)}
            try:
                loop = loop or Loop(world, geometry, LINES[name])
                given = batch(lengths, loop.model.config.vocab_size, world)
                sample |= loop.timed(given, 1 if world.tiny else 3 if sum(lengths) >= FEW else 15)
            except Exception as error:  # out of memory, or a package that cannot: the other lines are worth having
                yield sample | {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
                break  # longer ones would fail too
            yield sample
        del loop
        free()


def measured(launcher: Launcher, geometry: str, lines: list[str], packs: dict[str, list[int]]) -> dict[str, Any]:
    """By line and pack, `{"tokens/s", "seconds", "GiB", "loss"}` or the reason why there are none."""
    starts: dict[tuple[int, bool], list[str]] = {}
    for name in lines:  # accelerate changes torch, so it runs in processes of its own
        starts.setdefault((LINES[name].processes, name == RIVAL), []).append(name)
    found: dict[str, Any] = {name: {} for name in lines}
    for (processes, _), names in starts.items():
        for sample in launcher.samples("train", processes, geometry=geometry, lines=names, packs=packs):
            if "line" in sample:
                found[sample["line"]][sample["pack"]] = rated(sample)
            else:
                for name, key in itertools.product(names, packs):
                    found[name].setdefault(key, sample)
    return found


def single(tokens: list[int]) -> dict[str, list[int]]:
    """Packs of one document each."""
    return {str(length): [length] for length in tokens}


def rated(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample with its tokens per second."""
    if "failed" in sample:
        return {"failed": sample["failed"]}
    kept: dict[str, Any] = {key: sample[key] for key in ("exchange", "seconds", "GiB", "loss") if key in sample}
    return {"tokens/s": sample["tokens"] / median(sample["seconds"]), **kept}


def rows(launcher: Launcher, geometry: str, tokens: list[int], lines: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of each length and way to shard: over one card, the other lines' ratios beside; and over accelerate's."""
    tokens = TINY_TOKENS if launcher.tiny else tokens or TOKENS
    found = measured(launcher, geometry, lines or list(ALL), single(tokens))
    for length in tokens:
        at = {name: of.get(str(length), {}) for name, of in found.items()}
        speed = {name: one.get("tokens/s") for name, one in at.items()}
        shown = f"{length // K}k" if length >= K else f"{length} tokens"
        for name in OURS:
            if name not in at:
                continue
            least = BARS[geometry].get(length)
            bar = None if least is None else f">= {least}"
            ratio, why = over(at, name, ONE)
            beside = {"one card, tokens/s": speed.get(ONE), "two cards, tokens/s": speed[name]}
            beside |= {f"{other} over one": over(at, other, ONE)[0] for other in at if other not in (ONE, name)}
            what = f"{geometry}, one document of {shown}: tokens/s on two cards over one, {name}"
            why = why or missed(ratio, bar, steps_of(at, name, ONE, length))
            yield row(what, ratio, "", bar=bar, why=why, beside=beside, detail={"tokens": length} | at)
            if RIVAL in at:
                what = f"{geometry}, one document of {shown}: tokens/s of {name} over accelerate's context parallelism"
                ratio, why = over(at, name, RIVAL)
                why = why or missed(ratio, ">= 1", steps_of(at, name, RIVAL, length))
                peaks = {f"{one}, GiB": at[one].get("GiB") for one in (name, RIVAL)}
                yield row(what, ratio, "", bar=">= 1", why=why, beside=peaks)
        for name in FUSED[1:]:
            if name in at and ONE_FUSED in at:
                what = f"{geometry}, one document of {shown}: tokens/s on two cards over one, both with {name}"
                ratio, why = over(at, name, ONE_FUSED)
                beside = {f"{other} over {ONE}": over(at, other, ONE)[0] for other in (ONE_FUSED, name)}
                yield row(what, ratio, "", why=why, beside=beside, detail={"tokens": length} | at)


def steps_of(at: dict[str, Any], name: str, base: str, length: int) -> str:
    """Why two lines may compare badly: how far the seconds of their steps lie apart."""
    spread = (
        f"{one} took {min(at[one]['seconds']):.3g} to {max(at[one]['seconds']):.3g} s a step" for one in (name, base)
    )
    why = "what the host launches bounds a step" if length < FEW else "exchanges are not all hidden"
    return f"{why}: {', '.join(spread)}"


def over(at: dict[str, Any], name: str, base: str) -> tuple[float | None, str | None]:
    """The ratio of two lines' tokens per second, or why there is none."""
    pair = [at.get(one, {}) for one in (name, base)]
    if all("tokens/s" in one for one in pair):
        return pair[0]["tokens/s"] / pair[1]["tokens/s"], None
    return None, next((one["failed"] for one in pair if "failed" in one), NOT_MEASURED)
