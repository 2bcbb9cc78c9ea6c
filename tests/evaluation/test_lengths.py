"""Writers that read no length, and the figure of asked and written words."""

from __future__ import annotations

import io
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from hf_longctx.evaluation.benchmarks.longwriter import length_score, words_score
from hf_longctx.evaluation.report import plots
from hf_longctx.evaluation.report.lengths import Written, length_figure, length_label
from hf_longctx.evaluation.runner import evaluate
from hf_longctx.evaluation.writing import length_baselines
from tests.evaluation.test_plots import overlaps

ASKED = (500, 1000, 2000, 4000)


def some(bias: float, ended: float | None, n: int = 10) -> list[Written]:
    rng = random.Random(0)
    return [
        Written(
            asked, round(asked * bias * math.exp(rng.gauss(0, 0.4))), None if ended is None else rng.random() < ended
        )
        for asked in ASKED
        for _ in range(n)
    ]


def test_writers_that_read_no_length() -> None:
    found = length_baselines(ASKED)
    assert list(found) == ["always 1,000 words", "stops at random"]
    assert found["always 1,000 words"] == np.mean([length_score("word " * 1000, asked) for asked in ASKED])
    # a chance of 1 in `asked` to stop after each word
    drawn = np.random.default_rng(0).geometric(1 / 700, size=20_000)
    scores = [words_score(int(words), 700) for words in drawn]
    # 20,000 draws of deviation 0.37: 3 x 0.0026
    assert length_baselines([700])["stops at random"] == pytest.approx(np.mean(scores), abs=0.008)
    assert length_baselines([700, 1000])["always 1,000 words"] == pytest.approx((words_score(1000, 700) + 1) / 2)
    for wrong in ([], [0]):
        with pytest.raises(ValueError, match="expected"):
            length_baselines(wrong)


def test_the_figure_of_asked_and_written_words(tmp_path: Path) -> None:
    written = {"stock": some(0.3, 0.5), "after SFT": [*some(1.0, 1.0), Written(1000, 0, False)]}
    figure = length_figure(written, title="What is shown", subtitle="tiny model on a CPU, " * 6)
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert overlaps(figure) == []
    lines = {line.get_label(): line for line in axes.lines}
    shares = {
        name: f"{name} (S_l {100 * score:.0f})" for name, score in length_baselines([*ASKED] * 10 + [1000]).items()
    }
    assert list(lines[shares["always 1,000 words"]].get_ydata()) == [1000, 1000]
    x, y = lines[shares["stops at random"]].get_data()
    assert y / np.asarray(x) == pytest.approx([math.log(2)] * 2)
    assert list(lines["as asked"].get_xdata()) == list(lines["as asked"].get_ydata())
    assert "did not end by itself" in lines
    medians = lines[length_label("stock", written["stock"])]
    assert list(medians.get_ydata()) == [np.median([w.words for w in written["stock"] if w.asked == n]) for n in ASKED]
    # every answer is there, one without words on the lower edge
    low, high = axes.get_ylim()
    points = [y for line in axes.lines if line.get_label().startswith("_") for y in line.get_ydata()]
    assert len(points) == 81
    assert all(low < y < high for y in points)
    plots.save(figure, tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_lengths_that_differ_in_every_request_have_no_medians() -> None:
    many = [Written(100 * n, 90 * n) for n in range(1, 40)]
    (axes,) = length_figure({f"model {i}": many for i in range(5)}).axes
    assert len({line.get_color() for line in axes.lines if line.get_label().startswith("model")}) == 5
    assert all(len(line.get_xdata()) == 0 for line in axes.lines if line.get_label().startswith("model"))
    assert "did not end by itself" not in [line.get_label() for line in axes.lines]


def test_a_label_has_its_scores() -> None:
    many = [Written(100, 100, True), Written(100, 200, False)]
    assert length_label("a", many) == "a (S_l 83, unended as 0: 50)"
    assert length_label("a", [Written(100, 200)]) == "a (S_l 67)"


def test_no_answers_are_refused() -> None:
    for wrong in ({}, {"stock": []}):
        with pytest.raises(ValueError, match="Nothing to draw"):
            length_figure(wrong)


@pytest.mark.parametrize("lengths", [[200], [200, 300]])
def test_the_suite_draws_it_where_lengths_are_scored(
    llama: Any, tokenizer: Any, tmp_path: Path, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, list[Written]]] = []
    monkeypatch.setattr(
        "hf_longctx.evaluation.suite.length_figure",
        lambda found, **about: (drawn.append(found), length_figure(found))[1],
    )
    sample = {"task": "essay", "context": "Write.", "question": "", "answers": [], "max_new_tokens": 8}
    lines = [sample | {"id": str(n), "metric": "length_score", "meta": {"required": n}} for n in (2, 5)]
    lines.append(sample | {"id": "other", "metric": "judge"})
    file = tmp_path / "write.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    common = {"task": f"jsonl:{file}", "lengths": lengths, "window": 1000, "alone": True}
    evaluate(llama, tokenizer, out=tmp_path / "out", console=Console(file=io.StringIO()), **common)
    assert (tmp_path / "out" / "lengths.png").read_bytes().startswith(b"\x89PNG")
    (found,) = drawn
    assert list(found) == (["stock"] if len(lengths) == 1 else ["stock, 200 tokens", "stock, 300 tokens"])
    assert all([one.asked for one in many] == [2, 5] for many in found.values())
