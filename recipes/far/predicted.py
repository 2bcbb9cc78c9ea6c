"""What `plan train` predicts beside what was measured: bytes at the peak and seconds of a step, in 12 settings.

python -m recipes.far.predicted                  # on two H100s; on one, the settings of one card
python -m recipes.far.predicted --only 0,1       # some of them; the others stay as they are in the file
python -m recipes.far.predicted --tiny           # on a CPU, in seconds
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hf_longctx.evaluation.results import write_results
from hf_longctx.evaluation.rows import row
from hf_longctx.planning.hardware import MACHINES
from hf_longctx.planning.shape import build
from hf_longctx.planning.train import need
from hf_longctx.planning.train.fits import MARGIN
from hf_longctx.planning.train.seconds import step_seconds
from hf_longctx.planning.train.sizes import sizes_of
from recipes.outs import RESULT_OPTION, result_path

from ..benchmarks.reading import results_of
from ..benchmarks.saving import Saved
from .launching import answer, last_line
from .settings import MODELS, SETTINGS, TINY_SETTINGS, Setting
from .steps import GIB

SHARE, BYTES, SECONDS, CALIBRATED = 0.07, 1.5 * GIB, 0.15, 32 * 1024  # bars; from so many tokens time has one


def launch(name: str, gpus: int) -> dict[str, Any]:
    """What a setting's processes have measured, or why there is nothing."""
    found, errors, code = answer(["recipes.far.one_step", name], gpus)
    return {"failed": f"exit code {code}: {last_line(errors)}"} if found is None else found


def compare(of: Setting, measured: dict[str, Any]) -> dict[str, Any]:
    """A row of a setting: predicted beside measured."""
    sizes = sizes_of(build(MODELS[of.model]))
    needed, seconds = need(sizes, of.run), step_seconds(sizes, of.run, MACHINES["h100"]).step
    detail = {
        "predicted": {"peak GiB": needed.peak / GIB, "card GiB": needed.device / GIB, "seconds": seconds},
        "pinned GiB, predicted": needed.pinned / of.run.gpus / GIB,
        "widest": needed.widest,
        "tokens": of.run.tokens,
        "measured": measured,
    }
    if "peak_bytes" in measured:
        size = measured["peak_bytes"]
        detail["memory, share of what may be missed"] = abs(needed.peak - size) / max(SHARE * size, BYTES)
        detail["seconds, relative"] = abs(seconds - measured["seconds"]) / measured["seconds"]
        detail["too little"] = needed.device * MARGIN < size
    else:
        detail["said to fit"] = needed.device * MARGIN <= MACHINES["h100"].memory_bytes  # type: ignore[operator]
    gib = None if "peak_bytes" not in measured else measured["peak_bytes"] / GIB
    why = None if gib is not None else str(measured.get("out_of_memory") or measured.get("failed"))
    return row(f"{of.name}: peak", gib, "GiB", why=why, beside={"predicted": needed.peak / GIB}, detail=detail)


def summary(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What the predictions must hold, over all rows."""
    details = [one["detail"] for one in rows]
    memory = [one["memory, share of what may be missed"] for one in details if "seconds, relative" in one]
    times = [one["seconds, relative"] for one in details if one["tokens"] >= CALIBRATED and "seconds, relative" in one]
    short = [one["seconds, relative"] for one in details if one["tokens"] < CALIBRATED and "seconds, relative" in one]
    wrong = sum(bool(one.get("too little") or one.get("said to fit")) for one in details)
    bytes_, none = "memory: largest miss, in shares of 7 % or 1.5 GiB", "nothing was measured"
    yield row(bytes_, max(memory, default=None), "", bar="<= 1", why=None if memory else none)
    yield row(
        "time from 32k: largest miss", max(times, default=None), "", bar=f"<= {SECONDS}", why=None if times else none
    )
    yield row("time below 32k: largest miss", max(short, default=None), "", why=None if short else none)
    yield row("runs that were said to fit, or to need less, and did not", wrong, "", bar="<= 0")


def in_order(rows: dict[str, dict[str, Any]], settings: tuple[Setting, ...]) -> list[dict[str, Any]]:
    """The rows of all settings that were measured, after their summary."""
    every = [rows[f"{one.name}: peak"] for one in settings if f"{one.name}: peak" in rows]
    return [*summary(every), *every]


def main(arguments: list[str] | None = None) -> None:
    """Measure the settings that the machine has the cards for, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="numbers of settings, such as 0,1")
    parser.add_argument("--tiny", action="store_true", help="tiny models, on a CPU")
    parser.add_argument("--again", action="store_true", help="run nothing: predict again what the file has measured")
    parser.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    parser.add_argument("--out", **RESULT_OPTION)
    asked = parser.parse_args(arguments)
    settings = TINY_SETTINGS if asked.tiny else SETTINGS
    cards = 1 if asked.tiny else torch.cuda.device_count()
    chosen = [str(n) for n in range(len(settings))] if asked.only is None else asked.only.split(",")
    if not all(n.isdecimal() and int(n) < len(settings) for n in chosen):
        parser.error(f"--only {asked.only}: expected numbers from 0 to {len(settings) - 1}, separated by commas")
    asked.out = result_path(results_of(asked), "far_predicted")
    label = ", ".join(dict.fromkeys(one.model for one in settings))
    if asked.again:
        again(asked.out, settings)
    else:
        device = "cuda" if torch.cuda.is_available() and not asked.tiny else "cpu"
        file = Saved(asked.out, label, device, asked.commit, arrange=lambda rows: in_order(rows, settings))
        file.add(measured([settings[int(n)] for n in chosen], cards, asked.tiny))
    found = json.loads(asked.out.read_text(encoding="utf-8"))["rows"] if asked.out.exists() else []
    for one in summary([made for made in found if "detail" in made]):
        print(one["what"], one["value"], one["bar"], one["holds"])


def measured(settings: list[Setting], cards: int, tiny: bool) -> Iterator[dict[str, Any]]:
    """A row of each setting that there are cards for."""
    every = TINY_SETTINGS if tiny else SETTINGS
    for of in settings:
        if of.run.gpus > cards:
            print(f"{of.name}: left out, {cards} cards here", flush=True)
            continue
        number = every.index(of)
        made = compare(of, launch(f"tiny:{number}" if tiny else str(number), of.run.gpus))
        print(json.dumps(made["detail"]), flush=True)
        yield made


def again(file: Path, settings: tuple[Setting, ...]) -> None:
    """Predict once more what a file has measured: by today's formula, beside the figures of then."""
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"rows": []}
    rows = {one["what"]: one for one in before["rows"] if "detail" in one}
    for of in settings:
        if one := rows.get(f"{of.name}: peak"):
            of_then = {"commit": one["commit"]} if "commit" in one else {}
            rows[one["what"]] = compare(of, one["detail"]["measured"]) | of_then
    write_results(file, before | {"rows": in_order(rows, settings)})


if __name__ == "__main__":
    main()
