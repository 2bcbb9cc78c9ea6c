"""The card of the trained model, from what was measured before and after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_longctx.evaluation.results import result_file, write_results
from hf_longctx.evaluation.rows import row
from hf_longctx.hub import write_card

COMMAND = "accelerate launch -m recipes.long_clip.train"
WAYS = {"text_to_image": "text to image", "image_to_text": "image to text"}
CAPTIONS = {"long": "long captions", "short": "short captions"}


def write(report: dict[str, Any], config: dict[str, Any], tokens: int, out: Path) -> None:
    """The card of `out/model`, which reads `tokens`, from a result file that is written into `out/results`."""
    name = f"{Path(config['model']).name}-{tokens}"
    file = out / "results/retrieval.json"
    settings = {"task": "retrieval", "held out": config.get("held_out", 1000), "training": config.get("training", {})}
    data = result_file(rows(report), model=name, command=COMMAND, heading="after", settings=settings)
    write_results(file, data)
    base = config["model"] if "/" in config["model"] and not Path(config["model"]).exists() else None
    about = (
        f"A stock CLIP that reads {tokens} tokens, by `recipes/long_clip` of hf_longctx (Long-CLIP, "
        f"[Zhang et al. 2024](https://arxiv.org/abs/2403.15378)). Before the training, captions were cut at 77 tokens."
    )
    limits = ["Only what the table shows was measured: retrieval among pairs like those of the training, one seed."]
    write_card(out / "model", name, base_model=base, results=[file], about=about, limits=limits)


def rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Shares after the training beside those before it, in percent."""
    before = dict(shares(report["before"]))
    return [
        row(what, percent(share), "%", beside={"before": percent(before.get(what))})
        for what, share in shares(report["after"])
    ]


def percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def shares(measured: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    """What was measured, in words, and its share."""
    for name, found in measured.items():
        if name == "classes":
            yield from ((f"classes, top-{k}", share) for k, share in found.items())
            continue
        parts = [(f"{name}, {told}", found[key]) for key, told in CAPTIONS.items() if key in found] or [(name, found)]
        for what, recall in parts:
            for key, told in WAYS.items():
                yield from ((f"{what}, {told}, R@{k}", share) for k, share in recall[key].items())
        for one in found.get("by_length", []):
            if one["count"]:
                yield f"{name}, R@1 of captions of {one['low']} to {one['high'] - 1} tokens", one["share"]
