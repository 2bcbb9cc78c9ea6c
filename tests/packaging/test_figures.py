"""README's first pictures are drawn from the committed results, and show lengths that the stock model cannot read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from recipes.benchmarks import zero_shot
from recipes.benchmarks.reading import RESULTS, TRAINED
from recipes.benchmarks.tables import ROOT

PICTURES = sorted(zero_shot.LINES)


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
    assert texts(path)["Source"] == zero_shot.stamp(path), "python -m recipes.benchmarks.zero_shot figure (or summary)"
    assert f"({path.relative_to(ROOT)})" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_its_lines_are_the_numbers_beyond_the_trained_length(path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = zero_shot.figure(path)
    for axes, part in zip(figure.axes, ("perplexity", "passkey"), strict=True):
        rows = json.loads((RESULTS / f"zero_shot_{part}.json").read_text(encoding="utf-8"))["rows"]
        measured = {row["what"]: row["detail"][part] for row in rows}
        lines = {line.get_label(): line for line in axes.get_lines() if line.get_label() in measured}
        assert list(lines) == zero_shot.LINES[path], "no more lines than can be told apart"
        assert len(lines) <= 7
        for name, line in lines.items():
            lengths, values = (list(map(float, data)) for data in line.get_data())
            assert min(lengths) >= TRAINED
            assert values == [measured[name][str(int(n))] for n in lengths]
    perplexity, passkey = (zero_shot.curves(["stock"])[part]["stock"] for part in ("perplexity", "passkey"))
    assert max(passkey[n] for n in passkey if n > TRAINED) == 0, "where stock fails"
    assert perplexity[8 * TRAINED] > 100 * perplexity[TRAINED]


def test_readme_says_what_the_picture_shows_in_its_own_numbers() -> None:
    stock = zero_shot.curves(["stock"])["perplexity"]["stock"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"rises from {stock[TRAINED]:.0f} to {stock[8 * TRAINED]:,.0f}" in readme
