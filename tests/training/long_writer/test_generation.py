"""Ways to sample answers for reinforcement, side by side: a row each, also where one fails, and nothing left behind."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from recipes.long_writer import generation, train_grpo
from recipes.long_writer.generation import measured

from .made import elsewhere


def test_each_way_has_a_row_and_one_that_fails_says_why(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = train_grpo.train

    def failing(config: dict[str, Any], **more: Any) -> dict[str, Any]:
        if config["grpo"]["generation"] == "static":
            raise RuntimeError("not here\nand more")
        return train(config, **more)

    monkeypatch.setattr(train_grpo, "train", failing)
    own = config["grpo"]["training"] | {"max_completion_length": 8}
    rows = list(measured(elsewhere(config, tmp_path, grpo={"training": own}), ["static", "plain"], 2))
    assert [one["what"].rpartition(" ")[2] for one in rows] == ["static", "plain"]
    assert all("2 prompts with 4 answers of at most 8 tokens" in one["what"] for one in rows)
    assert (rows[0]["value"], rows[0]["why"]) == (None, "RuntimeError: not here")
    assert rows[1]["value"] == rows[1]["detail"]["seconds"][1] > 0
    assert rows[1]["beside"]["tokens of the longest answer"] <= 8
    assert not list((tmp_path / "out").iterdir())


def test_what_a_way_leaves_is_gone_when_the_next_begins(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of one that failed, perhaps for want of memory: the next would have less of it."""
    models = list[Any]()

    class Model:
        def __init__(self) -> None:
            self.own = self  # as a trainer and its model
            models.append(weakref.ref(self))

    def train(config: dict[str, Any], **_: Any) -> dict[str, Any]:
        assert all(model() is None for model in models)
        model = Model()
        if config["grpo"]["generation"] == "static":
            raise RuntimeError(f"{type(model)}")
        return {"logs": [{"step_time": 1.0, "completions/max_length": 8}] * 2}

    monkeypatch.setattr(train_grpo, "train", train)
    monkeypatch.setattr(generation.logger, "exception", lambda *_: None)  # pytest keeps what is logged, and its frames
    rows = list(measured(elsewhere(config, tmp_path), ["static", "plain", "graphs"], 2))
    assert [one["value"] for one in rows] == [None, 1.0, 1.0]
    assert len(models) == 3


def test_whole_answers_are_timed_by_every_way(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some can cut none, and the longest answer of those that can would not be what was sampled."""
    given = list[Any]()

    def train(config: dict[str, Any], **_: Any) -> dict[str, Any]:
        given.append(config["grpo"]["loop_tokens"])
        return {"logs": [{"step_time": 1.0, "completions/max_length": 8}] * 2}

    monkeypatch.setattr(train_grpo, "train", train)
    list(measured(elsewhere(config, tmp_path, grpo={"loop_tokens": 64}), ["graphs", "plain"], 2))
    assert given == [None, None]
