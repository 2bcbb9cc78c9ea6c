"""docs/families.md, from the committed verdicts of the census and the notes of `table.py`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.families.census import record
from tests.families.census.running import DECODERS
from tests.families.table import FAMILIES

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/families.md"
INTRODUCTION = """\
# Families

Every causal language model of transformers under attention methods (`lm_infinite`, `streaming_llm`, `position_free`),
by a tiny random model of each. Models are recognised by their structure, so others may work too: whether yours does,
`hf_longctx.check(model)` says. A model that is refused raises an error with the reason, and stays unchanged.

A served model has the stock model's logits when only the place of rotation changes, in a left-padded batch too:
`equal`, bit for bit, or within the relative distance that the table shows, which is fp32's rounding. Under LM-Infinite
its texts within the window stay as they are, and single tokens over a cache give what a full forward gives. A `-` is a
model that the release of transformers does not have.

Rendered from `tests/families/census/*.json` by `make tables`; `make census` looks again, every night in CI.
"""


def render() -> str:
    """The document."""
    records = {release: record.read(release) for release in record.files()}
    newest: dict[str, Any] = {}
    for families in records.values():  # oldest first
        newest |= families
    states = defaultdict(list)
    for name, row in sorted(newest.items()):
        states[row["state"]].append(name)
    lines = [INTRODUCTION, *_counts(records), ""]
    for title, names in _sections(states):
        lines += [f"## {title}", "", *_table(names, records, newest), ""]
    lines += ["## Not counted", "", *_outside(states, newest)]
    return "\n".join(lines) + "\n"


def _counts(records: dict[str, Any]) -> list[str]:
    lines = ["| transformers | decoders with rotary embeddings | served |", "| --- | --- | --- |"]
    for release, families in records.items():
        counted = [row["state"] for row in families.values() if row["state"] in DECODERS]
        lines.append(f"| {release} | {len(counted)} | {counted.count('served')} |")
    return lines


def _sections(states: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    sections = [("Served", states["served"]), ("Refused", states["refused"])]
    rest = [name for state in ("WRONG", "CRASH", "untried", "no decoder") for name in states[state]]
    return sections + ([("Neither", rest)] if rest else [])


def _table(names: list[str], records: dict[str, Any], newest: dict[str, Any]) -> list[str]:
    lines = [f"| family | {' | '.join(records)} | note |", f"| --- | {' | '.join('---' for _ in records)} | --- |"]
    for name in names:
        cells = " | ".join(_cell(families.get(name)) for families in records.values())
        note = newest[name].get("why") or (FAMILIES[name].note if name in FAMILIES else "")
        lines.append(f"| `{name}` | {cells} | {note.replace('|', chr(92) + '|')} |")
    return lines


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    if row["state"] != "served":
        return row["state"]
    off = max(row["same"], row["same_padded"])
    return f"{off:.0e}" if off else "equal"


def _outside(states: dict[str, list[str]], newest: dict[str, Any]) -> list[str]:
    reasons = defaultdict(list)
    for name in states["no rotary decoder"]:
        reasons[newest[name]["why"]].append(name)
    lines = [f"- {why}: {', '.join(names)}." for why, names in sorted(reasons.items())]
    wrappers = ", ".join(f"{name} ({newest[name]['why']})" for name in states["wrapper"])
    return [*lines, f"- models around a decoder that is in the list: {wrappers}."]
