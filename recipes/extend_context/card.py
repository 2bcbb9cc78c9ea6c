"""The model's card, and what a repeated run is expected to find: both from the report of the run."""

from __future__ import annotations

import math
from typing import Any

from .compare import rows


def comparisons(report: dict[str, Any]) -> dict[str, Any]:
    """Ratios of perplexities: over the stock model, and over itself with less context."""
    ours, stock = report["after"]["curves"], report["before"]["curves"]
    if not ours or set(ours) != set(stock):
        return {}
    trained = max(int(n) for one in stock.values() for n in one["nll"])
    near = {name: {**one, "nll": {str(trained): one["nll"][str(trained)]}} for name, one in ours.items()}
    found = rows(ours, stock, "stock")
    longest = max(int(n) for one in ours.values() for n in one["nll"])
    return found | (rows(ours, near, "itself") if longest > trained else {})


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


def card(report: dict[str, Any]) -> str:
    """Markdown with the measured numbers."""
    config, after = report["config"], report["after"]
    held = ", ".join(name for name, one in report["documents"].items() if one["held back"])
    lines = [
        "---",
        f"base_model: {report['base']}",
        "library_name: transformers",
        "tags: [long-context]",
        "---",
        f"# {report['base']}, extended to {config['length']:,} tokens",
        "",
        f"Trained by `recipes/extend_context` of hf_longctx {report['versions']['hf_longctx']}, {report['hardware']}:",
        f"{report['tokens']:,} tokens in {report['steps']} steps and {report['seconds']:.0f} seconds; positions: "
        f"{config['positions']}. Plain transformers loads it.",
        "",
        f"Perplexity of the same last {config['evaluation']['targets']:,} tokens of windows of documents that were "
        f"held back ({held}), repeated paragraphs dropped. Ratios, each with a 95 % interval by paired bootstrap:",
        "",
        "| context of this model, and what it is compared with | ratio | 95 % | each document |",
        "|---|--:|---|---|",
    ]
    for name, one in report["ratios"].items():
        each = ", ".join(f"{document} {value:.3f}" for document, value in one["documents"].items())
        lines.append(f"| {name} | {one['mean']:.4f} | {one['low']:.4f} to {one['high']:.4f} | {each} |")
    lines += ["", "| found at each depth, first to last | tokens | all | depths |", "|---|--:|--:|---|"]
    for what in ("passkey", "needle"):
        for length, cells in sorted(after.get(what, {}).items(), key=lambda item: int(item[0])):
            total, each = len(cells) * config["evaluation"]["trials"], " ".join(map(str, cells.values()))
            lines.append(f"| {what} | {length} | {sum(cells.values())} of {total} | {each} |")
    told = "loss on stock's answers"
    if told in after and told in report["before"]:
        change = after[told] - report["before"][told]
        lines += ["", f"Loss on the stock model's own answers to chat prompts: {change:+.3f} nats against stock."]
    lines += [
        "",
        "Perplexity of each document:",
        "",
        "| document | context | stock | this model |",
        "|---|--:|--:|--:|",
    ]
    for name, one in after["curves"].items():
        stock = report["before"]["curves"].get(name, {}).get("nll", {})
        for length, values in one["nll"].items():
            before = f"{perplexity(stock[length]):.2f}" if length in stock else "-"
            lines.append(f"| {name} | {length} | {before} | {perplexity(values):.2f} |")
    if after["not measured"]:
        lines += ["", f"Not measured, for lack of time: {', '.join(after['not measured'])}."]
    lines += [
        "",
        "## Limits",
        "",
        "Only what the tables show was measured: fluency and single facts, not reasoning over long texts.",
    ]
    return "\n".join(lines) + "\n"


def perplexity(nll: list[float]) -> float:
    return math.exp(sum(nll) / len(nll))
