"""Scores and sampled pairs of recipes/long_writer, where time or room is over before all are there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.hub import load
from recipes.long_writer import batching, score
from recipes.long_writer import pairs as pairs_module
from recipes.long_writer.data import Fitting
from recipes.long_writer.decode import LateError, Written
from recipes.long_writer.pairs import by_length
from recipes.long_writer.progress import Progress
from recipes.long_writer.score import NoTimeError, Scores


def test_what_there_is_no_time_or_room_for_is_named(config: dict[str, Any]) -> None:
    model, tokenizer = load(config["model"])
    late = Scores(lambda: (model, tokenizer), config, until=time.monotonic() - 1).all()
    assert late["tasks"] == late["writing"] == []
    assert "tasks 60" in late["not measured"]
    short = Scores(lambda: (model, tokenizer), config | {"context": 150}).all()
    assert "numbered of 60 tokens" in short["no room"]


def test_a_size_that_is_left_is_measured_in_another_call(config: dict[str, Any], tmp_path: Path) -> None:
    """What was measured is not measured again, and nothing is listed as not measured that another call has time for."""
    given, whole = load(config["model"]), dict[str, Any]()
    Scores(lambda: given, config, into=whole).all()
    own, loads = config | {"out": str(tmp_path)}, list[int]()

    def give() -> Any:
        loads.append(1)
        return given

    def over() -> None:
        raise NoTimeError

    sizes = Progress(own, [], resume=False).sizes("untrained")
    with pytest.raises(NoTimeError):
        Scores(give, config, sizes=sizes, kept=over).all()  # ends behind the first size
    assert "tasks 60" in sizes or "writing 10" in sizes
    with pytest.raises(NoTimeError):
        Scores(give, config, sizes=sizes, stop=time.monotonic() - 1).all()
    again = Progress(own, [], resume=True).sizes("untrained")
    assert Scores(give, config, sizes=again).all() == whole
    loads.clear()
    assert Scores(give, config, sizes=again, until=time.monotonic() - 1).all() == whole
    assert not loads


def test_a_size_that_is_longer_than_a_call_does_not_come_again_and_again(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried with half of a call before it at least, and the others are measured."""
    given, tried = load(config["model"]), list[str]()
    sizes = Progress(config | {"out": str(tmp_path)}, [], resume=False).sizes("untrained")
    stock = Scores.tasks

    def tasks(self: Scores, tokens: int, todo: Any) -> Any:
        tried.append(f"tasks {tokens}")
        if self.stop is not None:
            raise TimeoutError
        return stock(self, tokens, todo)

    monkeypatch.setattr(Scores, "tasks", tasks)
    now = time.monotonic()
    for stop, half, first in ((now + 1000, now - 1, 1e9), (now + 1000, now - 1, 0.0), (now + 1000, now + 500, 1e9)):
        made = Scores(lambda: given, config, stop=stop, half=half, sizes=sizes)
        made.paces = {"tasks": first, "writing": first}
        with pytest.raises(NoTimeError):
            made.all()
    # late: not begun as it would take too long; begun, and ended by the clock; early: begun all the same
    assert tried == ["tasks 60"] * 2
    found = Scores(lambda: given, config, stop=now + 1000, half=now + 500, sizes=sizes).all()
    assert tried == ["tasks 60"] * 2
    assert found["not measured"] == ["tasks 60"]
    assert found["writing"]


def test_the_time_of_a_size_is_predicted_by_what_is_read(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest size is the one that there is no time for."""
    given = load(config["model"])
    costs: dict[str, float] = {}

    def size(self: Scores, what: str, size: int, todo: Any) -> dict[str, Any]:
        costs[f"{what} {size}"] = cost = self._cost(todo)
        return {"cells": [], "no room": [], "cost": cost, "fixed": batching.FIXED, "seconds": per_token * cost}

    monkeypatch.setattr(Scores, "_size", size)
    per_token = 0.0
    Scores(lambda: given, config).all()
    assert list(costs.values()) == sorted(costs.values())
    longest = max(costs, key=costs.__getitem__)
    per_token = 1010.0 / costs[longest]
    late = Scores(lambda: given, config, until=time.monotonic() + 1000).all()
    assert late["not measured"] == [longest]


def test_the_time_of_a_size_is_predicted_by_the_one_before(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the slowest for what it reads, a short one, most of whose time is the same in every step."""
    given, costs = load(config["model"]), list[float]()
    pace, counted = 0.0, {"fixed": batching.FIXED}

    def size(self: Scores, what: str, size: int, todo: Any) -> dict[str, Any]:
        costs.append(self._cost(todo))
        seconds = pace * costs[0] if len(costs) == 1 else 0.0
        return {"cells": [], "no room": [], "cost": costs[-1], "seconds": seconds} | counted

    monkeypatch.setattr(Scores, "_size", size)
    Scores(lambda: given, config).all()
    first, second, *_, last = costs
    assert first < second < last / 1.2
    costs.clear()
    pace = 900 / second  # at which there is no time for the last
    found = Scores(lambda: given, config, until=time.monotonic() + 1000).all()
    assert found["not measured"] == []
    # what was kept when costs were counted in another way tells nothing
    for how, late in (({"fixed": batching.FIXED}, True), ({"fixed": 1}, False), ({}, False)):
        costs.clear()
        pace, counted = 1e6 / second, how
        found = Scores(lambda: given, config, until=time.monotonic() + 1000).all()
        assert bool(found["not measured"]) == late


def test_a_size_that_takes_longer_than_it_may_is_ended(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first size is begun without a measure of its time. What was ended is measured when there is more."""
    given, whole, until = load(config["model"]), dict[str, Any](), list[float | None]()
    stock = score.write
    Scores(lambda: given, config, into=whole).all()

    def late(*args: Any, **how: Any) -> Any:
        until.append(how["until"])
        return stock(*args, **how | {"until": time.monotonic() - 1 if len(until) == 1 else None})

    monkeypatch.setattr(score, "write", late)
    progress, last = Progress(config | {"out": str(tmp_path)}, [], resume=False), time.monotonic() + 1000
    found = Scores(lambda: given, config, last=last, stop=last + 1, sizes=progress.sizes("untrained")).all()
    (name,) = found["not measured"]
    assert until[0] == last
    assert found["writing"] + found["tasks"], "the others are measured"
    again = Scores(lambda: given, config, sizes=progress.sizes("untrained")).all()
    assert again == whole
    assert len(until) == 1 + len({one["asked"] for one in whole["writing"]}) + len(whole["tasks"]), f"{name} alone"
    until.clear()
    with pytest.raises(NoTimeError):  # the call is over before
        Scores(lambda: given, config, last=last + 1, stop=last).all()
    assert until == [last]


def test_pairs_are_of_the_prompts_that_there_was_time_for(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = load(config["model"])
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a river " * 10, "a river")]
    written: list[Written | None] = [Written([*one, tokenizer.eos_token_id], True, []) for one in ids] * 3
    own = config | {"dpo": config["dpo"] | {"prompts": 3, "samples": 2, "longest": 100}}
    whole, some, now = Fitting(10**6), Fitting(10**6), time.monotonic()
    monkeypatch.setattr(pairs_module, "write", lambda *_, **__: written)
    by_length(model, tokenizer, own, whole, enough=now)
    assert len(whole.rows) == 3

    def late(*_: Any, until: float, **__: Any) -> Any:
        assert until == now
        raise LateError([*written[:3], None, *written[4:]])  # of the second prompt

    monkeypatch.setattr(pairs_module, "write", late)
    said = by_length(model, tokenizer, own, some, enough=now, until=now + 1000)
    assert (said["prompts"], said["prompts without time"]) == (3, 1)
    assert "1 of 3 prompts have no pair: there was no time to sample their answers" in caplog.text
    assert some.rows == [whole.rows[0], whole.rows[2]]
    with pytest.raises(LateError):  # a call that is over goes on in the next one, with all of them
        by_length(model, tokenizer, own, Fitting(10**6), until=now, enough=now + 1)
