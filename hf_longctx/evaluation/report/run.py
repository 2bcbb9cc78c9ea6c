"""From finished cells to rows, a table and a figure; and back from a result file to what a figure is drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from ..passkey import PasskeyCell, wilson_interval
from ..perplexity import perplexity
from ..results import row
from . import plots

# {configuration: {(length, ...): cell}}; a cell that ran out of memory is None.
Cells = Mapping[str, Mapping[tuple[Any, ...], Mapping[str, Any] | None]]


def perplexity_rows(cells: Cells, lengths: Sequence[int], documents: int, *, n_targets: int) -> list[dict[str, Any]]:
    """One row a length: the last configuration's perplexity, the others beside it. Keys are (length, document)."""
    rows = []
    *others, main = cells
    for length in lengths:
        found = {name: [cells[name][length, index] for index in range(documents)] for name in cells}
        nll = {name: [c["nll"] for c in many if c] for name, many in found.items() if None not in many}
        value = {name: perplexity(nll[name]) if name in nll else None for name in cells}
        rows.append(
            row(
                f"perplexity of the last {n_targets:,} tokens, {length:,} read, {main}",
                value[main],
                "perplexity",
                why=None if main in nll else "out of memory",
                beside={name: value[name] for name in others},
                detail={"length": length, "nll_per_document": nll, **_cost(found)},
            )
        )
    return rows


def passkey_rows(cells: Cells, lengths: Sequence[int], depths: Sequence[float]) -> list[dict[str, Any]]:
    """One row a length and depth: the last configuration's accuracy, the others beside it. Keys are (length, depth)."""
    rows = []
    *others, main = cells
    for length in lengths:
        for depth in depths:
            found = {name: cells[name][length, depth] for name in cells}
            share = {name: cell and cell["correct"] / cell["trials"] for name, cell in found.items()}
            done = {name: cell for name, cell in found.items() if cell}
            rows.append(
                row(
                    f"passkey found, {length:,} tokens, depth {depth:g}, {main}",
                    share[main],  # type: ignore[arg-type]  # None or a float
                    "share of trials",
                    why=None if found[main] else "out of memory",
                    beside={name: share[name] for name in others},
                    detail={
                        "length": length,
                        "depth": depth,
                        "trials": {name: cell["trials"] for name, cell in done.items()},
                        "correct": {name: cell["correct"] for name, cell in done.items()},
                        "wilson_95": {n: wilson_interval(c["correct"], c["trials"]) for n, c in done.items()},
                        **_cost({name: [cell] for name, cell in found.items()}),
                    },
                )
            )
    return rows


def curves(results: Mapping[str, Any]) -> dict[str, dict[int, float | None]]:
    """{configuration: {length: perplexity}} of a result file of the task "ppl", for `plots`."""
    *others, main = results["settings"]["configurations"]
    found: dict[str, dict[int, float | None]] = {name: {} for name in (*others, main)}
    for line in results["rows"]:
        for name, value in {**line["beside"], main: line["value"]}.items():
            found[name][line["detail"]["length"]] = value
    return found


def grids(results: Mapping[str, Any]) -> dict[str, list[PasskeyCell]]:
    """{configuration: cells} of a result file of the task "passkey", for `plots`."""
    found: dict[str, list[PasskeyCell]] = {name: [] for name in results["settings"]["configurations"]}
    for line in results["rows"]:
        detail = line["detail"]
        for name, trials in detail["trials"].items():
            found[name].append(PasskeyCell(detail["length"], detail["depth"], trials, detail["correct"][name]))
    return found


def figure(results: Mapping[str, Any]) -> Any:
    """The figure of one result file, with its conditions in the title."""
    settings, window = results["settings"], results["settings"]["window"]
    where = f"{results['model']} on {results['hardware']}, {settings['text']}"
    if settings["task"] == "ppl":
        title = f"Perplexity of the same last {settings['n_targets']:,} tokens by context read"
        subtitle = f"{where}, {settings['documents']} documents"
        return plots.perplexity_figure(curves(results), window=window, title=title, subtitle=subtitle)
    title = "Passkey retrieval, % found" + (f" (dashed: trained window, {plots.tokens(window)})" if window else "")
    subtitle = f"{where}, {settings['trials']} trials a cell, seed {settings['seed']}"
    return plots.passkey_figure(grids(results), window=window, title=title, subtitle=subtitle)


def table(results: Mapping[str, Any]) -> Table:
    """A rich table: one line a length, one column a configuration; passkey pools depths, with its Wilson interval."""
    settings = results["settings"]
    ppl = settings["task"] == "ppl"
    unit = f"perplexity of the last {settings['n_targets']:,} tokens" if ppl else "passkey found, all depths"
    drawn = Table(title=f"{results['model']}: {unit}", caption=f"{results['hardware']}, {settings['text']}")
    drawn.add_column("tokens", justify="right")
    for name in settings["configurations"]:
        drawn.add_column(name, justify="right", overflow="fold")
    by_length: dict[int, list[Mapping[str, Any]]] = {}
    for line in results["rows"]:
        by_length.setdefault(line["detail"]["length"], []).append(line["detail"])
    scores = curves(results) if ppl else {}
    for length, details in by_length.items():
        texts = []
        for name in settings["configurations"]:
            seconds = sum(detail["seconds"].get(name, 0.0) for detail in details)
            peak = max((detail["peak_gib"].get(name) or 0.0 for detail in details), default=0.0)
            score = _score(scores[name][length], details[0], name) if ppl else _pooled(details, name)
            cost = f"{seconds:.1f} s" + (f", {peak:.1f} GiB" if peak else "")
            texts.append(f"{score}\n[dim]{cost}[/dim]" if seconds else score)
        drawn.add_row(f"{length:,}", *texts)
    return drawn


def _score(value: float | None, detail: Mapping[str, Any], name: str) -> str:
    if value is None:
        return "not finite" if name in detail["nll_per_document"] else "out of memory"
    return f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"


def _pooled(details: Sequence[Mapping[str, Any]], name: str) -> str:
    trials = sum(detail["trials"].get(name, 0) for detail in details)
    if not trials:
        return "out of memory"
    correct = sum(detail["correct"].get(name, 0) for detail in details)
    low, high = wilson_interval(correct, trials)
    return f"{100 * correct / trials:.0f} % ({100 * low:.0f}–{100 * high:.0f})"


def _cost(found: Mapping[str, Sequence[Mapping[str, Any] | None]]) -> dict[str, dict[str, float | None]]:
    """Seconds summed and peak memory, for configurations whose cells are all there."""
    done = {name: [cell for cell in cells if cell] for name, cells in found.items() if None not in cells}
    return {
        "seconds": {name: sum(cell["seconds"] for cell in cells) for name, cells in done.items()},
        "peak_gib": {
            name: max((c["peak_gib"] or 0.0 for c in cells), default=0.0) or None for name, cells in done.items()
        },
    }
