"""The chain of recipes/long_writer: its time, its stages and what it refuses before one begins."""

from __future__ import annotations

import json
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longctx.evaluation.results import write_results
from recipes.benchmarks.reading import command_without_paths
from recipes.long_writer import card, chain
from recipes.long_writer.budget import Budget
from recipes.long_writer.command import parser, settings
from recipes.long_writer.progress import Progress
from recipes.long_writer.stage import decides
from recipes.long_writer.trainers import trainers
from recipes.resuming import fingerprints

from .made import scores


def test_the_minutes_of_a_chain_are_those_of_all_its_calls(tmp_path: Path) -> None:
    file = tmp_path / "seconds.json"
    first = Budget(10, 4, file, resume=False)
    assert first.stop == pytest.approx(time.monotonic() + 240, abs=1)
    assert first.ends == pytest.approx(time.monotonic() + 600, abs=1)
    file.write_text("200.0", encoding="utf-8")
    second = Budget(10, None, file, resume=True)
    assert second.stop is None
    assert second.ends == pytest.approx(time.monotonic() + 400, abs=1)
    second.keep()
    assert json.loads(file.read_text(encoding="utf-8")) == pytest.approx(200, abs=1)
    assert Budget(10, None, file, resume=False).ends == pytest.approx(time.monotonic() + 600, abs=1)
    assert Budget(None, None, file, resume=True).ends is None


def test_the_chain_refuses_a_folder_that_holds_a_training(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "STAGES", dict.fromkeys(chain.STAGES))  # none of which is reached, or needs TRL
    (tmp_path / "dpo/run/checkpoint-3").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"dpo holds a training\. Go on with --resume, or choose another folder"):
        chain.run(config | {"out": str(tmp_path)})
    assert [one.name for one in tmp_path.iterdir()] == ["dpo"]


def test_the_chain_reads_its_files_before_it_measures(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("a book\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 1 is not JSON"):
        chain.run(config | {"chats": [str(tmp_path / "bad.jsonl")]})
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 1 is not JSON"):
        chain.run(config | {"score": config["score"] | {"writing": str(tmp_path / "bad.jsonl")}})


def test_stages_come_in_their_order_and_begin_with_what_is_trained(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, str]] = []

    def train(name: str) -> Any:
        def run(_: Any, *, model: str, **__: Any) -> dict[str, Any]:
            begun.append((name, model))
            return {"versions": {}}

        return run

    monkeypatch.setattr(chain, "STAGES", {name: train(name) for name in chain.STAGES})
    monkeypatch.setattr(chain, "scored", lambda *_, **__: scores([0.0], [1.0], [0.5], 1.0))
    monkeypatch.setattr(card, "write", lambda *_: None)
    out, sft = str(tmp_path), str(tmp_path / "sft/model")
    chain.run(config | {"out": out, "chain": {"dpo": 0.1, "grpo": 0.1, "sft": 0.1}})
    assert begun == [("sft", config["model"]), ("dpo", sft), ("grpo", sft)]
    begun.clear()
    chain.run(config | {"out": out, "chain": {"dpo": 0.1, "grpo": 0.0, "sft": 0.0}}, minutes=1)
    assert begun == [("dpo", config["model"])]


def test_there_is_something_to_resume(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chain, "STAGES", dict.fromkeys(chain.STAGES))  # none of which is reached, or needs TRL
    with pytest.raises(
        ValueError, match=r"--resume: .*nowhere holds no chain to go on with\. Leave it out to begin one"
    ):
        chain.run(config | {"out": str(tmp_path / "nowhere")}, resume=True)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["chain", "--smoke", "--resume"])
    with pytest.raises(SystemExit):
        chain.main()
    assert "nothing to --resume. Leave one out" in capsys.readouterr().err


def test_a_stage_without_a_checkpoint_begins_anew(config: dict[str, Any], tmp_path: Path) -> None:
    """It was killed before it saved one; and a stage is complete only with its report and its model."""
    own = config | {"out": str(tmp_path)}
    Progress(own, ["sft"], resume=False)
    (tmp_path / "sft/model").mkdir(parents=True)
    told: list[bool] = []

    def train(resume: bool) -> dict[str, Any]:
        told.append(resume)
        return {}

    Progress(own, ["sft"], resume=True).stage("sft", "base", train)
    (tmp_path / "sft/run/checkpoint-3").mkdir(parents=True)
    Progress(own, ["sft"], resume=True).stage("sft", "base", train)
    assert told == [False, True]
    write_results(tmp_path / "sft/settings.json", fingerprints(decides(own, "sft", "base") | {"data": {}}))
    write_results(tmp_path / "sft/report.json", {"steps": 3})
    assert Progress(own, ["sft"], resume=True).stage("sft", "base", train) == {"steps": 3}
    with pytest.raises(ValueError, match="--resume: model changed since the training in"):
        Progress(own, ["sft"], resume=True).stage("sft", "another", train)
    assert told == [False, True]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--minutes", "-1"], "--minutes -1: expected a number above 0"),
        (["--minutes", "nan"], "--minutes nan: expected a number above 0"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: No such file"),
        (["--variant", "s_l"], "--variant s_l: config.yaml has no s_l; it has s_l_alone"),
    ],
)
def test_options_that_cannot_work_are_said(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        settings(parser(None).parse_args(given))
    assert capsys.readouterr().err.startswith(said)


def test_without_trl_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    trainers.cache_clear()
    with pytest.raises(ImportError, match=r"this recipe trains by TRL .* Install it: pip install '.\[trl\]'"):
        trainers()


@pytest.mark.parametrize(
    ("fails", "trained"), [("sft", []), ("dpo", ["sft", "grpo"]), ("grpo", ["sft", "dpo"])], ids=lambda one: str(one)
)
def test_a_stage_that_fails_costs_none_that_begins_with_another_model(
    fails: str, trained: list[str], config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, models = list[str](), list[Any]()

    class Model:
        """Held by the frame in which it fails, and in a circle, as a trainer holds its own."""

        def __init__(self) -> None:
            self.own = self
            models.append(weakref.ref(self))

    def train(name: str) -> Any:
        def forward(model: Model) -> None:
            if name == fails:
                raise ValueError(f"{type(model)}")

        def run(*_: Any, **__: Any) -> dict[str, Any]:
            assert all(model() is None for model in models), "what failed is in memory"
            model = Model()
            try:
                forward(model)
            except ValueError as error:
                raise torch.OutOfMemoryError(f"no memory for {name}") from error
            done.append(name)
            return {"versions": {}}

        return run

    monkeypatch.setattr(chain, "STAGES", {name: train(name) for name in chain.STAGES})
    monkeypatch.setattr(chain, "scored", lambda *_, **__: scores([0.0], [1.0], [0.5], 1.0))
    monkeypatch.setattr(card, "write", lambda *_: None)
    with pytest.raises(torch.OutOfMemoryError, match=f"no memory for {fails}"):
        chain.run(config | {"out": str(tmp_path)})
    assert done == trained
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert list(report["stages"]) == trained
    assert list(report["lines"]) == [chain.UNTRAINED, chain.BANNED, *trained]
    assert report["command"] == command_without_paths()


def test_the_seconds_of_a_training_that_is_interrupted_count(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()

    def train(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(time, "monotonic", lambda: now + 500)
        raise SystemExit("interrupted after 3 steps")

    monkeypatch.setattr(chain, "STAGES", dict.fromkeys(chain.STAGES, train))
    monkeypatch.setattr(chain, "scored", lambda *_, **__: scores([0.0], [1.0], [0.5], 1.0))
    with pytest.raises(SystemExit, match="interrupted"):
        chain.run(config | {"out": str(tmp_path)}, minutes=60)
    assert json.loads((tmp_path / "seconds.json").read_text(encoding="utf-8")) >= 499
