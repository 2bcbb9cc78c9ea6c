"""Settings of recipes/long_writer side by side: rows as they come, nothing trained or scored twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("trl")

from recipes.long_writer import screen
from recipes.long_writer.settings import DEFAULT, read_config
from tests.optional import hide

VARIANTS = {"few": {"sft": {"problems": 12}}, "slow": {"sft": {"training": {"learning_rate": 1e-4}}}}


@pytest.fixture
def screened(config: dict[str, Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The command, whose rows are given by name."""
    file, out = tmp_path / "config.yaml", tmp_path / "screen.json"
    file.write_text(yaml.safe_dump(config | {"variants": VARIANTS}), encoding="utf-8")

    def run(*words: str) -> dict[str, Any]:
        screen.main(["--config", str(file), "--models", str(tmp_path / "models"), "--out", str(out), *words])
        rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
        return {row["what"].partition(":")[0]: row for row in rows}

    return run


def never(*_: Any, **__: Any) -> None:
    pytest.fail("it was done again")


def test_each_variant_has_a_row_and_is_trained_once(
    screened: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--variants", "base", "few+slow", "--averaged", "0.5", "1.0", "--named", "12 rows"]
    rows = screened(*words)
    names = ["base", "few+slow"]
    shares = [f"{name}, 12 rows{share}" for name in names for share in ("", *BEFORE)]
    assert list(rows) == ["before, 12 rows", *shares]
    before, base = rows["before, 12 rows"], rows["base, 12 rows"]
    # all of the weights before are the model before
    for name in names:
        whole = rows[f"{name}, 12 rows{BEFORE[1]}"]
        assert whole["value"] == before["value"]
        assert whole["beside"]["loss"] == pytest.approx(before["beside"]["loss"], rel=1e-6)
    half = rows[f"base, 12 rows{BEFORE[0]}"]["beside"]["loss"]
    assert base["beside"]["loss"] < half < before["beside"]["loss"]
    assert base["beside"][screen.SEEN] < before["beside"][screen.SEEN]
    assert base["beside"]["steps"] == 8
    assert base["detail"]["gains"]["writing: ended_length"]["prompts"] > 0
    assert rows["few+slow, 12 rows"]["beside"]["loss"] > base["beside"]["loss"], "one twentieth of the rate"
    for folder in ("base", "few+slow"):
        assert not (tmp_path / f"models/{folder}/sft/run").exists()
        assert (tmp_path / f"models/{folder}/texts/sft 0.0.jsonl").exists()

    monkeypatch.setattr(screen, "STAGES", {"sft": never})
    monkeypatch.setattr(screen, "load", never)
    again = screened(*words)
    assert {name: row["value"] for name, row in again.items()} == {name: row["value"] for name, row in rows.items()}


BEFORE = [f", {share} of the weights before" for share in (0.5, 1.0)]


def test_a_variant_that_fails_costs_no_other_one(
    screened: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = screen.STAGES["sft"]

    def fails(config: dict[str, Any], **how: Any) -> Any:
        if "few" in config["out"]:
            raise RuntimeError("no memory")
        return stock(config, **how)

    monkeypatch.setattr(screen, "STAGES", {"sft": fails})
    with pytest.raises(SystemExit, match="these variants failed: few"):
        screened("--variants", "few", "slow")
    rows = json.loads((tmp_path / "screen.json").read_text(encoding="utf-8"))["rows"]
    assert [row["what"].partition(":")[0] for row in rows] == ["before", "slow"]
    monkeypatch.setattr(screen, "STAGES", {"sft": stock})
    assert list(screened("--variants", "few", "slow")) == ["before", "slow", "few"]


def test_other_stages_begin_with_a_model(screened: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    rows = screened("--stage", "grpo", "--variants", "base")
    assert list(rows) == ["before", "base"]
    assert rows["base"]["beside"]["steps"] == 2
    assert screen.best([tmp_path / "models"]) == tmp_path / "models/base/grpo/model"


def test_the_best_has_the_greatest_score_of_those_whose_tasks_are_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, length, exact in (("a/one", 0.9, 0.5), ("a/two", 0.7, 0.8), ("b/three", 0.6, 0.9)):
        (tmp_path / name / "sft/model").mkdir(parents=True)
        row = {"value": length, "beside": {"tasks, exact": exact}}
        (tmp_path / name / "row.json").write_text(json.dumps(row), encoding="utf-8")
    screen.main(["--best", str(tmp_path / "a"), str(tmp_path / "b")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "a/two/sft/model")
    with pytest.raises(ValueError, match="expected folders that --models named, with rows"):
        screen.best([tmp_path / "c"])


def test_what_it_lacks_is_said_before_it_begins(
    screened: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(screen, "measured", never)
    short = tmp_path / "short.jsonl"
    chat = [{"role": "user", "content": "Write 900 words."}, {"role": "assistant", "content": "a"}]
    short.write_text(json.dumps({"messages": chat, "words": 900}), encoding="utf-8")
    with pytest.raises(SystemExit, match="expected a file with rows that ask for at most 40 words"):
        screened("--writing", str(short))
    hide(monkeypatch, "trl")
    with pytest.raises(ImportError, match=r"trl.* Install it: pip install"):
        screened()


def test_the_variants_that_sample_do_it_as_they_are_scored() -> None:
    scored = read_config(DEFAULT)["score"]
    own = read_config(DEFAULT, "grpo_scored")["grpo"]
    assert [own["training"][name] for name in ("temperature", "top_p")] == [scored["temperature"], scored["top_p"]]
    assert not own["training"]["mask_truncated_completions"]
    assert own["prompts"] > own["problems"]
    both = read_config(DEFAULT, "fewer_problems+rate_2e-4")["sft"]
    assert (both["problems"], both["training"]["learning_rate"]) == (4000, 2e-4)
    assert both["training"]["bf16"], "what a variant does not name stays"
    with pytest.raises(ValueError, match=r"--variant sequence\+none: config.yaml has no none; it has "):
        read_config(DEFAULT, "sequence+none")
    with pytest.raises(
        ValueError, match=r"rate_2e-4 sets sft: training: learning_rate to 0.0002, and rate_1e-4 to 0.0001"
    ):
        read_config(DEFAULT, "rate_2e-4+rate_1e-4")
