"""Recipes, benchmarks and the demo: what an earlier run wrote is there until the new run's is whole."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.cli import demo
from hf_longctx.evaluation.rows import row
from recipes.benchmarks import reading
from tests.tiny import tiny


def test_a_benchmark_that_breaks_leaves_the_old_results_and_its_own_rows(tmp_path: Path) -> None:
    args = argparse.Namespace(out=tmp_path, commit=None)
    model = tiny()

    def rows(n: int, breaks: bool) -> Iterator[dict[str, Any]]:
        for i in range(n):
            yield row(f"row {i}", n, "s")
        if breaks:
            raise KeyboardInterrupt

    def found(name: str) -> list[Any]:
        return [one["value"] for one in json.loads((tmp_path / name).read_text())["rows"]]

    reading.finish(model, rows(3, False), args, "x")
    assert found("x.json") == [3, 3, 3]
    with pytest.raises(KeyboardInterrupt):
        reading.finish(model, rows(2, True), args, "x")
    assert found("x.json") == [3, 3, 3]
    assert found("x.json.partial") == [2, 2]
    reading.finish(model, rows(1, False), args, "x")
    assert found("x.json") == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_benchmarks_take_lengths_as_the_commands_do() -> None:
    assert reading.lengths("4096,8k,1M") == [4096, 8192, 1_000_000]
    with pytest.raises(argparse.ArgumentTypeError, match="such as 4096,8k,1M"):
        reading.lengths("4x")


def test_a_training_that_is_refused_leaves_the_report_of_the_one_that_is_there(tmp_path: Path) -> None:
    train = pytest.importorskip("recipes.long_clip.train")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "progress.json").write_text("{}")
    (tmp_path / "report.json").write_text('{"after": 1}')
    pairs = tmp_path / "captions.jsonl"
    line = {"image": "a.png", "caption": "A long caption.", "short_caption": "Short."}
    pairs.write_text("".join(json.dumps(line) + "\n" for _ in range(4)))
    (tmp_path / "a.png").write_bytes(b"")
    config = {"model": "none", "pairs": str(pairs), "out": str(tmp_path), "held_out": 2}
    with pytest.raises(ValueError, match="holds a training"):  # before the model, which is not there
        train.run(config)
    assert (tmp_path / "report.json").read_text() == '{"after": 1}'


def test_a_demo_that_breaks_leaves_what_an_earlier_one_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(
        *_: Any, out: str, error: type[BaseException] | None = None, text: str = "", **__: Any
    ) -> dict[str, Any]:
        for name in ("cells.jsonl", "results.json"):
            (Path(out) / name).write_text(text)
        if error is not None:
            raise error
        return {}

    monkeypatch.setattr("hf_longctx.evaluation.runner.evaluate", measure)
    out, given = tmp_path / "perplexity", (None, None, None)
    demo._measure(*given, out, text="old")
    with pytest.raises(KeyboardInterrupt):
        demo._measure(*given, out, text="half", error=KeyboardInterrupt)
    assert {path.name: path.read_text() for path in out.iterdir()} == {"cells.jsonl": "old", "results.json": "old"}
    demo._measure(*given, out, text="new")
    assert {path.name: path.read_text() for path in out.iterdir()} == {"cells.jsonl": "new", "results.json": "new"}
