"""A new task or benchmark is one file in its folder: nothing else is edited, and `hf-longctx eval` knows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.evaluation import benchmarks, evaluate, tasks
from hf_longctx.evaluation.runner import described
from tests.cli.test_cli import complaint, run
from tests.tiny import tiny, tokenizer

ECHO = '''
"""A word is said once, and asked for."""

from dataclasses import dataclass

from ..generated import Generated
from ..scoring import Metric


@dataclass(frozen=True, kw_only=True)
class Echo(Generated):
    metric = "begins"
    max_new_tokens = 4

    def build(self, rng, units, fill, depth):
        return self.sample(fill, " ", "w7 " + "w3 " * units, ("", "w5", ""), answers=("w7",))


TASKS = {"echo": lambda name, text: Echo(name=name)}
METRICS = {"begins": Metric(lambda said, sample: float(said.strip().startswith(sample.answers)))}
'''
COUNT = '''
"""How many tokens a model has read."""

from dataclasses import dataclass

from ..rows import row
from ..task import Cell, Prepared, Task, setting


@dataclass(frozen=True, kw_only=True)
class Count(Task):
    name = "count"
    about = "a number that needs no text"
    times: int = setting(2, "How often it is counted.")

    def prepare(self, tokenizer, request):
        return Counted(self, request)


class Counted(Prepared):
    def __init__(self, task, request):
        self.task, self.request = task, request

    def settings(self, window):
        return {"times": self.task.times}

    def places(self):
        return [(length,) for length in self.request.lengths]

    def cell(self, kind, at, window):
        return Cell((kind, *at), at[0], self.task.times)

    def value(self, model, cell, progress):
        progress(self.task.times)
        return {"count": self.task.times * cell.length}

    def rows(self, values, window):
        *_, main = values
        return [row(f"{at[0]} tokens", value["count"], "tokens") for at, value in values[main].items()]

    def table(self, results):
        return "counted"


ALONE = {"count": Count}
'''
LISTS = '''
"""Lists (Doe 2030): one of several words is right."""

from ..records import records
from ..scoring import Metric, every


def read(path):
    for record in records(path, ["text", "words"]):
        yield record.sample(
            id=record.name("id"), task="lists", context=record.text("text"), answers=record.texts("words"),
            max_new_tokens=4, metric="listed",
        )


METRICS = {"listed": Metric(every(lambda said, words: float(any(word in said for word in words))), inside=True)}
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny(max_position_embeddings=64).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def add(monkeypatch: pytest.MonkeyPatch, package: Any, folder: Path, name: str, text: str) -> None:
    folder.mkdir()
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_longctx.hub.gguf.cache_home", lambda: tmp_path / "home")


def test_a_task_that_asks_questions(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch, tasks, tmp_path / "more", "echo", ECHO)
    options = ["--lengths", "48,96", "--task-set", "samples=2", "--method", "lm_infinite", "--set", "n_local=16"]
    result = run("eval", model, "--task", "echo", *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [line["detail"]["task"] for line in found["rows"][:2]] == ["echo", "echo"]
    assert found["settings"]["configurations"] == ["stock", "last 64 tokens", "LMInfinite"]
    said = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert {line["metric"] for line in said} == {"begins"}
    assert "echo" in str(described())
    assert "Did you mean echo?" in complaint(run("eval", model, "--task", "ecko", *options, "--out", tmp_path / "b"))


def test_a_measurement_of_another_kind(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch, tasks, tmp_path / "more", "count", COUNT)
    options = ["--task", "count", "--lengths", "48,96"]
    result = run("eval", model, *options, "--task-set", "times=3", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [line["value"] for line in found["rows"]] == [144, 288]
    assert found["settings"]["times"] == 3
    wrong = complaint(run("eval", model, *options, "--task-set", "time=3", "--out", tmp_path / "b"))
    assert "count: no setting 'time'. Did you mean 'times'? There are: times." in wrong
    assert "times: How often it is counted. Default: 2." in run("eval", "--list").stdout


def test_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch, benchmarks, tmp_path / "more", "lists", LISTS)
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"text": "w3 w4 w5", "words": ["w6", "w7"]}) + "\n")
    found = evaluate(
        tiny(), tokenizer(), task=f"lists:{file}", lengths=[32], alone=True, out=tmp_path / "out", samples=1
    )
    assert found["rows"][0]["what"] == "lists, 32 tokens, stock"
    file.write_text(json.dumps({"text": "w3 w4 w5", "words": [""]}) + "\n")
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 1: the references are blank; listed"):
        evaluate(tiny(), tokenizer(), task=f"lists:{file}", lengths=[32], out=tmp_path / "b")
