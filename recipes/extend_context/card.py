"""The model's card, and what a repeated run is expected to find: both from the report of the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hf_longctx.evaluation.results import result_file, write_results
from hf_longctx.evaluation.rows import row
from hf_longctx.hub import write_card

from . import compare
from .measure import SAMPLED, moved

THIS = "this model"


def comparisons(report: dict[str, Any]) -> dict[str, Any]:
    """Ratios of perplexities: over the stock model, and over itself with less context."""
    ours, stock = report["after"]["curves"], report["before"]["curves"]
    if not ours or set(ours) != set(stock):
        return {}
    trained = compare.longest(stock)
    near = {name: {**one, "nll": {str(trained): one["nll"][str(trained)]}} for name, one in ours.items()}
    found = compare.rows(ours, stock, "stock")
    return found | (compare.rows(ours, near, "itself") if compare.longest(ours) > trained else {})


def expected(report: dict[str, Any]) -> dict[str, Any]:
    """Each ratio with the half of its interval, but at least 0.01, as its tolerance; counts with 5."""
    found = {
        f"perplexity, {name}": {
            "value": round(one["mean"], 4),
            "tolerance": round(max((one["high"] - one["low"]) / 2, 0.01), 4),
        }
        for name, one in report["ratios"].items()
    }
    for what in ("passkey", "needle"):
        for length, cells in report["after"].get(what, {}).items():
            found[f"{what}, {length} tokens"] = {"value": sum(cells.values()), "tolerance": 5}
    return found


def write(report: dict[str, Any], out: Path) -> None:
    """The card of `out/model`, from result files that are written into `out/results`."""
    config, name = report["config"], f"{report['base']}-{report['config']['length']}"
    files = []
    for what, more in result_rows(report).items():
        settings = {"task": what, "positions": config["positions"], "targets": config["evaluation"]["targets"]}
        command = report.get("command", compare.COMMAND)
        data = result_file(more.pop("rows"), model=name, command=command, settings=settings, **more)
        files.append(out / f"results/{what}.json")
        write_results(files[-1], data)
    base = config["model"] if "/" in config["model"] and not Path(config["model"]).exists() else None
    limits = ["Only what the tables show was measured: fluency and single facts, not reasoning over long texts."]
    write_card(out / "model", name, base_model=base, results=files, about=about(report), limits=limits)


def about(report: dict[str, Any]) -> str:
    """How the model was trained, and what the tables hold."""
    config, missing = report["config"], report["after"]["not measured"]
    held = ", ".join(name for name, one in report["documents"].items() if one["held back"])
    lines = [
        f"{report['base']}, extended to {config['length']:,} tokens by `recipes/extend_context` of hf_longctx "
        f"{report['versions']['hf_longctx']} on {report['hardware']}: {report['tokens']:,} tokens in {report['steps']} "
        f"steps and {report['seconds']:.0f} seconds; positions: {config['positions']}.",
        f"Perplexity is of the same last {config['evaluation']['targets']:,} tokens of windows of documents that were "
        f"held back ({held}), repeated paragraphs dropped. Ratios have a 95 % interval by paired bootstrap.",
        *([f"Not measured, for lack of time: {', '.join(missing)}."] if missing else []),
    ]
    return "\n\n".join(lines)


def result_rows(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows and heading of each result file by its name, none without rows."""
    found = {
        "ratios": {"heading": "ratio", "rows": ratios(report)},
        "retrieval": {"heading": "all", "rows": retrieval(report)},
        "perplexity": {"heading": THIS, "rows": documents(report)},
    }
    return {name: one for name, one in found.items() if one["rows"]}


def ratios(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Perplexities over others', with each document's beside; the loss on the stock model's answers against its own."""
    rows = []
    for name, one in report["ratios"].items():
        beside = {"95 %, low": one["low"], "95 %, high": one["high"], **one["documents"]}
        rows.append(row(f"perplexity, {name}", one["mean"], "", beside=beside))
    for measure, change in moved(report["after"], report["before"]).items():
        what = "sampled answers to chat prompts" if measure == SAMPLED else "own answers to chat prompts"
        rows.append(row(f"loss on the stock model's {what}", change, "nats against stock"))
    return rows


def retrieval(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Facts found, by length, and at each depth from first to last."""
    rows = []
    for what in ("passkey", "needle"):
        for length, cells in sorted(report["after"].get(what, {}).items(), key=lambda item: int(item[0])):
            right, total = sum(cells.values()), len(cells) * report["config"]["evaluation"]["trials"]
            beside = {"tokens": length, "found": f"{right} of {total}", "by depth": " ".join(map(str, cells.values()))}
            detail = {"task": what, "length": int(length), "trials": total, "correct": right, "method": THIS}
            rows.append(row(what, 100 * right / total, "%", beside=beside, detail=detail))
    return rows


def documents(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Perplexity of each document after each context, beside the stock model's."""
    rows = []
    for name, one in report["after"]["curves"].items():
        stock = report["before"]["curves"].get(name, {}).get("nll", {})
        for length, values in one["nll"].items():
            before = perplexity(stock[length]) if length in stock else None
            detail = {"task": f"perplexity of {name}", "length": int(length), "method": THIS}
            what = f"{name}, {int(length):,} tokens"
            rows.append(row(what, perplexity(values), "perplexity", beside={"stock": before}, detail=detail))
    return rows


def perplexity(nll: list[float]) -> float:
    return math.exp(sum(nll) / len(nll))
