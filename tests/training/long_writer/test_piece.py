"""Pieces of a chain, in processes of their own: the chain that is resumed afterwards does nothing of it again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.evaluation.results import write_results
from recipes.long_writer import card, chain, piece
from recipes.long_writer.figures import BANNED, UNTRAINED
from recipes.long_writer.progress import Progress
from recipes.long_writer.stage import decides
from recipes.resuming import fingerprints

from .made import scores


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was really done: trainings with the model that they began with, and scores."""
    told: list[str] = []

    def train(name: str) -> Any:
        def run(config: dict[str, Any], *, model: str, **_: Any) -> dict[str, Any]:
            out = Path(config["out"]) / name
            told.append(f"train {name} from {Path(model).parent.name if 'sft' in model else UNTRAINED}")
            (out / "model").mkdir(parents=True)
            write_results(out / "settings.json", fingerprints(decides(config, name, model) | {"data": {}}))
            write_results(out / "report.json", {"steps": 3, "versions": {}})
            return {"steps": 3, "versions": {}}

        return run

    def scored(model: str, _: Any, *, sizes: Any, banned: bool = False, **how: Any) -> dict[str, Any]:
        def measure() -> dict[str, Any]:
            told.append(f"score {sizes.name}")
            assert banned == (sizes.name == BANNED)
            return scores([0.0], [1.0], [0.5], 1.0)

        return dict(sizes.run("all", measure))

    stages = {name: train(name) for name in chain.STAGES}
    for module in (chain, piece):
        monkeypatch.setattr(module, "STAGES", stages)
        monkeypatch.setattr(module, "scored", scored)
    monkeypatch.setattr(card, "write", lambda *_: None)
    return told


def test_a_chain_in_pieces_is_the_chain(config: dict[str, Any], tmp_path: Path, done: list[str]) -> None:
    parts = {"chain": {"sft": 0.1, "dpo": 0.1, "grpo": 0.1}}
    own = config | parts | {"out": str(tmp_path / "pieces")}
    assert piece.train(own, "sft", 60)["steps"] == 3
    assert piece.score(own, UNTRAINED, 60) == [f"{name}: tasks 2000" for name in (UNTRAINED, BANNED)]
    for name in ("dpo", "grpo"):
        piece.train(own, name)
    for name in ("grpo", "sft", "dpo"):  # in any order, and at the same time
        piece.score(own, name)
    every = [f"train {name}" for name in ("sft from untrained", "dpo from sft", "grpo from sft")]
    every += [f"score {name}" for name in (UNTRAINED, BANNED, "sft", "dpo", "grpo")]
    assert sorted(done) == sorted(every)
    done.clear()
    found = chain.run(own, minutes=1, resume=True)
    assert done == []
    whole = chain.run(config | parts | {"out": str(tmp_path / "whole")}, minutes=1)
    assert sorted(done) == sorted(every)
    assert found["lines"] == whole["lines"]
    assert [one["what"] for one in found["rows"]] == [one["what"] for one in whole["rows"]]
    done.clear()
    assert piece.train(own, "dpo")["steps"] == 3  # complete: skipped
    piece.score(own, "dpo")
    assert done == []


def test_what_a_piece_needs_is_there_first(config: dict[str, Any], tmp_path: Path, done: list[str]) -> None:
    own = config | {"out": str(tmp_path / "new")}
    with pytest.raises(
        ValueError, match=r"sft holds no trained model, and --train dpo begins with it\. Train it first"
    ):
        piece.train(own, "dpo")
    with pytest.raises(ValueError, match=r"grpo holds no trained model, and --score grpo reads it\. Train it first"):
        piece.score(own, "grpo")
    assert not list(tmp_path.iterdir())
    piece.score(own, UNTRAINED)
    with pytest.raises(ValueError, match=r"holds cells of another run: .*seed"):
        piece.score(own | {"seed": 5}, UNTRAINED)
    with pytest.raises(ValueError, match=r"holds cells of another run: .*seed"):
        Progress(own | {"seed": 5}, [], resume=True)
    assert done == [f"score {UNTRAINED}", f"score {BANNED}"]


def test_a_piece_is_one_thing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], done: list[str]
) -> None:
    for given, said in (
        ([], "one of the arguments --train --score is required"),
        (["--train", "sft", "--score", "sft"], "not allowed with argument"),
        (["--train", "all"], "invalid choice"),
    ):
        monkeypatch.setattr(sys, "argv", ["piece", *given])
        with pytest.raises(SystemExit):
            piece.main()
        assert said in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["piece", "--score", "sft", "--out", str(tmp_path / "new")])
    with pytest.raises(SystemExit, match="Train it first: --train sft"):
        piece.main()
    assert done == []
