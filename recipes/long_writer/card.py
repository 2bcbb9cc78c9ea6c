"""The card of a trained model, from result files that are made of the report of the run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_longctx.evaluation.results import result_file, write_results
from hf_longctx.evaluation.rows import row
from hf_longctx.evaluation.writing import LOOPS
from hf_longctx.hub import write_card
from recipes.long_writer.compare import values

COMMAND = "python -m recipes.long_writer.chain"
LIMITS = (
    "A model of this size copies and counts; what it writes freely has the asked length, and no meaning to rely on.",
    "Only what the tables show was measured, with one seed.",
)
Rows = list[dict[str, Any]]


def write(report: dict[str, Any], stage: str, out: Path) -> None:
    """The card of `out/STAGE/model`, from result files that are written into `out/STAGE/results`."""
    name, files = f"{report['base']}-{stage}", []
    settings = {"training": report["config"][stage], "scores": report["config"]["score"]}
    # files of the user are places of a computer
    settings["scores"] = settings["scores"] | {"writing": Path(settings["scores"]["writing"] or "").name}
    for what, (heading, found) in tables(report, stage).items():
        if found:
            told = {"task": what, **settings}
            data = result_file(found, model=name, command=COMMAND, heading=heading, settings=told)
            data["versions"] |= report["versions"]
            files.append(out / stage / f"results/{what}.json")
            write_results(files[-1], data)
    given = report["config"]["model"]
    base = given if "/" in given and not Path(given).exists() else None
    write_card(out / stage / "model", name, base_model=base, results=files, about=about(report, stage), limits=LIMITS)


def about(report: dict[str, Any], stage: str) -> str:
    """How the model was trained, and what the tables hold."""
    steps = [f"{name} {one['steps']} steps in {one['seconds']:.0f} s" for name, one in report["stages"].items()]
    scores = report["lines"][stage]
    lines = [
        f"{report['base']}, trained to write long answers by `recipes/long_writer` of hf_longctx with TRL "
        f"{report['versions']['trl']} on {report['hardware']}: {', '.join(steps)}. This is the model after {stage}.",
        "Tasks are problems that were not trained on, answered greedily. Writing continues beginnings that were held "
        "back; S_l is LongWriter's length score, here with 0 for an answer that did not end by itself.",
        *_missing("Not measured, for lack of time", scores["not measured"]),
        *_missing("Without room in the context", scores["no room"]),
    ]
    return "\n\n".join(lines)


def tables(report: dict[str, Any], stage: str) -> dict[str, tuple[str, Rows]]:
    """Heading and rows of each table, by its name."""
    own = [one for one in report["rows"] if one["what"].startswith((f"{stage}:", f"{stage} over")) and one["bar"]]
    return {
        "tasks": ("exact", list(tasks(report["lines"], stage))),
        "writing": ("S_l", list(writing(report["lines"], stage))),
        "bars": ("this model", own),
    }


def tasks(lines: dict[str, Any], stage: str) -> Iterator[dict[str, Any]]:
    """Exact answers of each task and size, with the share before the first error, and those of the untrained model."""
    for cell in lines[stage]["tasks"]:
        mean = {name: statistics.fmean(cell[name]) for name in ("exact", "share", "ended")}
        untrained = values(lines["untrained"], "tasks", "exact", task=cell["task"], tokens=cell["tokens"])
        beside = {
            "right before the first error": 100 * mean["share"],
            "ended": 100 * mean["ended"],
            "exact, untrained": 100 * statistics.fmean(untrained) if untrained else None,
        }
        detail = {"prompts": len(cell["exact"])}
        yield row(f"{cell['task']}, {cell['tokens']:,} tokens", 100 * mean["exact"], "%", beside=beside, detail=detail)


def writing(lines: dict[str, Any], stage: str) -> Iterator[dict[str, Any]]:
    """S_l of each form and length, with what else was measured."""
    for cell in lines[stage]["writing"]:
        words = [n for n, end in zip(cell["words"], cell["ended"], strict=True) if end]
        loops = [share > LOOPS for share, end in zip(cell["repeated"], cell["ended"], strict=True) if not end]
        beside = {
            "ended, %": 100 * statistics.fmean(cell["ended"]),
            "of others, loops, %": 100 * statistics.fmean(loops) if loops else None,
            "median written over asked": statistics.median(cell["ratio"]),
            "median words, ended": statistics.median(words) if words else None,
            "repeated 8-grams": statistics.fmean(cell["repeated"]),
            "the text's own": statistics.fmean(cell["text repeated"]),
        }
        what, detail = f"{cell['form']}, {cell['asked']:,} words asked", {"prompts": len(cell["ended"])}
        yield row(what, 100 * statistics.fmean(cell["ended_length"]), "", beside=beside, detail=detail)


def _missing(said: str, names: list[str]) -> list[str]:
    return [f"{said}: {', '.join(dict.fromkeys(names))}."] if names else []
