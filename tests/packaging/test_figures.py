"""The pictures of README and guides are drawn from committed results, and show lengths that stock cannot read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from recipes.benchmarks import summary, zero_shot
from recipes.benchmarks.reading import RESULTS, TRAINED
from recipes.benchmarks.sequence_parallel import figure as steps
from recipes.benchmarks.tables import ROOT

# where each is shown, and what it is drawn from
PICTURES = {
    summary.FIGURE: ("README.md", summary.stamp),
    zero_shot.FIGURE: ("README.md", lambda: zero_shot.stamp(zero_shot.FIGURE)),
    steps.FIGURE: ("docs/parallel.md", steps.stamp),
}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def texts(path: Path) -> dict[str, str]:
    """The text chunks of a PNG file, which are its metadata."""
    data, at, found = path.read_bytes(), 8, {}
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"tEXt":
            name, _, value = data[at + 8 : at + 8 + length].partition(b"\0")
            found[name.decode("latin-1")] = value.decode("latin-1")
        at += 12 + length
    return found


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_the_committed_picture_is_that_of_the_committed_results(path: Path) -> None:
    page, stamp = PICTURES[path]
    assert texts(path)["Source"] == stamp(), "python -m recipes.benchmarks.summary, ...zero_shot figure, or *.figure"
    shown = path.relative_to((ROOT / page).parent)
    assert f"({shown})" in (ROOT / page).read_text(encoding="utf-8")


def test_its_lines_are_the_numbers_beyond_the_trained_length() -> None:
    pytest.importorskip("matplotlib")
    for axes, part in zip(zero_shot.figure(zero_shot.FIGURE).axes, ("perplexity", "passkey"), strict=True):
        rows = json.loads((RESULTS / f"zero_shot_{part}.json").read_text(encoding="utf-8"))["rows"]
        measured = {row["what"]: row["detail"][part] for row in rows}
        lines = {line.get_label(): line for line in axes.get_lines() if line.get_label() in measured}
        assert list(lines) == zero_shot.LINES[zero_shot.FIGURE], "no more lines than can be told apart"
        assert len(lines) <= 7
        for name, line in lines.items():
            lengths, values = (list(map(float, data)) for data in line.get_data())
            assert min(lengths) >= TRAINED
            assert values == [measured[name][str(int(n))] for n in lengths]
    perplexity, passkey = (zero_shot.curves(["stock"])[part]["stock"] for part in ("perplexity", "passkey"))
    assert max(passkey[n] for n in passkey if n > TRAINED) == 0, "where stock fails"
    assert perplexity[8 * TRAINED] > 100 * perplexity[TRAINED]


def test_the_first_picture_shows_stock_failing_and_the_methods_not() -> None:
    pytest.importorskip("matplotlib")
    shown = summary.curves()
    for axes, (part, lines) in zip(summary.figure().axes, shown.items(), strict=True):
        drawn = [line.get_data() for line in axes.get_lines()][: len(lines)]
        for (lengths, values), line in zip(drawn, lines.values(), strict=True):
            assert dict(zip(map(int, lengths), map(float, values), strict=True)) == line
        assert {text.get_text() for text in axes.texts} >= set(lines), f"every line of {part} has its name"
        assert sum(n > TRAINED for n in lines["stock"]) >= 2
    rows = json.loads((RESULTS / "zero_shot_perplexity.json").read_text(encoding="utf-8"))["rows"]
    for row in rows:
        if row["what"] in shown["perplexity"]:
            assert shown["perplexity"][row["what"]] == {int(n): v for n, v in row["detail"]["perplexity"].items()}
    rows = json.loads((RESULTS / "xl3m_needle.json").read_text(encoding="utf-8"))["rows"]
    for name, line in shown["needle"].items():
        for length in [n for n in line if n <= 1 << 20]:
            found = [r["value"] for r in rows if (r["detail"]["method"], r["detail"]["length"]) == (name, length)]
            assert line[length] == pytest.approx(100 * sum(found) / len(found))
    fluent, needle = shown.values()
    assert fluent["stock"][8 * TRAINED] > 100 * fluent["LM-Infinite 8k"][8 * TRAINED]
    assert max(needle["stock"][n] for n in needle["stock"] if n > TRAINED) == 0
    assert min(needle["XL3M"][n] for n in needle["XL3M"] if n > TRAINED) >= 95


def test_readme_says_what_the_picture_shows_in_its_own_numbers() -> None:
    stock = zero_shot.curves(["stock"])["perplexity"]["stock"]
    assert f"rises from {stock[TRAINED]:.0f} to {stock[8 * TRAINED]:,.0f}" in README
