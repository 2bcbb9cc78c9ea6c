"""The benchmark behind the needle heat-map, with a stand-in for the model."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
import torch

from hf_longctx.evaluation.results import result_file, write_results
from recipes.benchmarks import heatmap


class Bench:
    """Prompts of zeros with the key at its depth; answers with it where it is among the last 100 tokens."""

    def prompt(self, task: Any, length: int, trial: int, trials: int, seed: int) -> tuple[Namespace, str]:
        key = 1000 + 10 * trial + seed
        text = torch.zeros(length - 2, dtype=torch.long)
        text[round((trial + 0.5) / trials * (len(text) - 1))] = key
        return Namespace(head=[1], text=text, question=[2]), str(key)

    def answers(self, prompts: list[list[int]]) -> list[str]:
        assert len(prompts) * len(prompts[0]) <= max(600, len(prompts[0]))
        return [str(max(ids[-100:])) for ids in prompts]


def test_needles_are_measured_by_method_length_and_depth_and_drawn(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heatmap, "TRAINED", 60)
    monkeypatch.setattr(heatmap, "AT_ONCE", 600)
    monkeypatch.setattr(heatmap, "_short", lambda bench, asked, new: [[int(key)] for *_, key in asked])
    args = Namespace(lengths=[80, 400, 900], depths=4, trials=2, stock_most=400, seconds=60.0)
    rows = list(heatmap.measure(Bench(), None, 10, args))
    assert len(rows) == 3 * 3 * 4
    value = {(r["detail"]["method"], r["detail"]["length"], r["detail"]["depth"]): r["value"] for r in rows}
    depths = [0.125, 0.375, 0.625, 0.875]
    assert [value["stock", 80, d] for d in depths] == [1, 1, 1, 1]
    assert [value["stock", 400, d] for d in depths] == [0, 0, 0, 1]
    assert [value["stock", 900, d] for d in depths] == [None] * 4
    assert [value[heatmap.TRUNCATED, 80, d] for d in depths] == [0, 1, 1, 1]
    assert [value[heatmap.TRUNCATED, 900, d] for d in depths] == [0, 0, 0, 0]
    assert all(value["XL3M", n, d] == 1 for n in args.lengths for d in depths)
    assert {r["why"] for r in rows if r["value"] is None} == {
        "not run: stock's time grows with the square of the length"
    }
    settings = {"window": 60, "trials": 2, "text": "zeros"}
    write_results(tmp_path / "x.json", result_file(rows, model="stand-in", command="test", settings=settings))
    stock, truncated, xl3m, _ = heatmap.draw(tmp_path / "x.json").axes
    assert [axes.get_title(loc="left") for axes in (stock, truncated, xl3m)] == ["stock", heatmap.TRUNCATED, "XL3M"]
    assert [text.get_text() for text in stock.texts] == ["100", "0", "–"] * 3 + ["100", "100", "–"]


def test_what_begins_too_late_is_left_out() -> None:
    args = Namespace(lengths=[80], depths=1, trials=1, stock_most=400, seconds=-1.0)
    rows = list(heatmap.measure(Bench(), None, 10, args))
    assert [(r["value"], r["why"]) for r in rows] == [(None, "out of time")] * 3
