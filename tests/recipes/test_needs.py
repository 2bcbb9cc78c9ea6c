"""A command that takes minutes finds out what it lacks before they begin, and loses nothing where it fails later.

Two halves of one rule: a command runs to its end in a process that has no optional packages but those that it names,
and without any one of these it begins nothing.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_longctx.cli import demo
from recipes.benchmarks.retrieval import __main__ as retrieval
from recipes.benchmarks.retrieval.parts import PARTS
from recipes.extend_context import curriculum, measure, screen, train
from recipes.extend_context.smoke import FAR, prepare
from recipes.far import beside
from recipes.jobs import __main__ as jobs
from recipes.long_writer import chain, score
from recipes.long_writer.smoke import prepare as prepare_writer
from recipes.resuming import check_fresh
from recipes.sequence_parallel_sft import smoke as sft_smoke
from recipes.sequence_parallel_sft import train as sft
from tests.optional import hide, optional


def modules(packages: Any) -> set[str]:
    return {module for package in packages for module in package.modules}


def never(*_: Any, **__: Any) -> None:
    pytest.fail("it has begun")


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Of a training of two steps."""
    return prepare(tmp_path) | {"tokens": 2 * 2 * FAR}


def screened(config: dict[str, Any], folder: Path, *words: str) -> Path:
    """The result file of recipes.extend_context.screen."""
    variants = {"few": {"retrieval": {"facts": 1}}, "slow": {"training": {"learning_rate": 1e-3}}}
    file, out = folder / "config.yaml", folder / "screen.json"
    file.write_text(yaml.safe_dump(config | {"variants": variants}), encoding="utf-8")
    screen.main(["--config", str(file), "--seconds", "60", "--out", str(out), *words])
    return out


def names_in(out: Path) -> list[str]:
    return [row["what"].partition(":")[0] for row in json.loads(out.read_text(encoding="utf-8"))["rows"]]


# lengths that hold no pass key, and no needle
SHORT = [(48, "length=40: the task, the pass key"), (200, "retrieval: 200: the needle and its question")]
COMMANDS: dict[str, Callable[[dict[str, Any], Path], object]] = {
    "train": lambda config, folder: train.run(config),
    "screen": lambda config, folder: screened(config, folder),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_extending_a_context_takes_what_it_names(
    command: str, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = modules(measure.NEEDS)
    assert named
    for module in named:
        with monkeypatch.context() as without:
            hide(without, module)
            for place in (train, screen):
                without.setattr(place, "trained", never)
                without.setattr(place, "load_extended", never)
            with pytest.raises(ImportError, match=rf"{module}.* Install it: pip install '\.\["):
                COMMANDS[command](config, tmp_path)
            assert {one.name for one in tmp_path.iterdir()} <= {"model", "documents", "config.yaml"}
    hide(monkeypatch, *optional() - named)
    COMMANDS[command](config, tmp_path)


@pytest.mark.parametrize(("shortest", "said"), SHORT)
@pytest.mark.parametrize("command", COMMANDS)
def test_an_evaluation_that_cannot_work_is_refused_before_the_training(
    command: str, shortest: int, said: str, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not packages alone: each kind of prompt is made."""
    config["evaluation"] |= {"retrieval": [FAR, shortest]}
    for place in (train, screen):
        monkeypatch.setattr(place, "trained", never)
        monkeypatch.setattr(place, "own_answers", never)
    with pytest.raises(ValueError, match=said):
        COMMANDS[command](config, tmp_path)


def test_no_variant_costs_the_rows_of_another(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One fails when it is measured: the rows before and after it are there, and what was trained is measured later."""
    stock, calls = screen.after_training, itertools.count()

    def after_training(*args: Any) -> Any:
        if next(calls) == 1:
            raise RuntimeError("no memory")
        return stock(*args)

    words = ["--variants", "base", "few", "slow"]
    with monkeypatch.context() as failing:
        failing.setattr(screen, "after_training", after_training)
        with pytest.raises(SystemExit, match=r"failed: few \(what was trained is kept in .*screen-few\)"):
            screened(config, tmp_path, *words)
    out = tmp_path / "screen.json"
    assert names_in(out) == ["base", "slow"]
    assert "RuntimeError: no memory" in capsys.readouterr().err
    with monkeypatch.context() as again:
        again.setattr(screen, "trained", never)
        screened(config, tmp_path, "--variants", "few")
    assert names_in(out) == ["base", "slow", "few"]
    (row,) = (one for one in json.loads(out.read_text(encoding="utf-8"))["rows"] if one["what"].startswith("few"))
    assert row["beside"]["tokens"] == config["tokens"]
    assert not (tmp_path / "screen-few").exists()


def test_what_is_kept_of_other_settings_is_trained_anew(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as failing:
        failing.setattr(screen, "after_training", lambda *_: 1 / 0)
        with pytest.raises(SystemExit, match="failed: base"):
            screened(config, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "trained", never)
        with pytest.raises(pytest.fail.Exception, match="it has begun"):
            screened(config | {"averaged": 0.5}, tmp_path)


def test_a_training_is_told_before_it_is_measured(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "fixed_targets", fails_after(measure.fixed_targets, len(config["held_back"])))
    with pytest.raises(RuntimeError, match="no memory"):
        train.run(config)
    kept = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert len(kept["losses"]) == kept["steps"] == 2
    assert (tmp_path / "out/model/model.safetensors").exists()


def fails_after(function: Callable[..., Any], times: int) -> Callable[..., Any]:
    calls = itertools.count()

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls) >= times:
            raise RuntimeError("no memory")
        return function(*args, **kwargs)

    return failing


def test_a_reader_is_not_tuned_for_a_part_that_cannot_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--tiny", "--out", str(tmp_path / "out"), "--readers", "tuned", "--keep", str(tmp_path / "readers")]
    named = modules(retrieval.needed(list(PARTS)))
    assert "wonderwords" in named
    for module in named:
        with monkeypatch.context() as without:
            hide(without, module)
            without.setattr(retrieval, "teach_", never)
            with pytest.raises(ImportError, match=rf"{module}.* Install it: pip install"):
                retrieval.main([*words, "--parts", "inside", "ruler"])
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(retrieval, "load", never)
    with pytest.raises(SystemExit, match="2"):
        retrieval.main([*words[:-1], str(tmp_path / "file")])
    assert re.search(r"--keep.*file' is a file; expected", capsys.readouterr().err)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_parts_take_what_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that fails is a SystemExit at the end."""
    hide(monkeypatch, *optional() - modules(retrieval.needed(["ruler"])))
    monkeypatch.setattr("recipes.benchmarks.retrieval.tasks.RULER", ("cwe", "niah_single_3"))
    retrieval.main(["--tiny", "--out", str(tmp_path), "--readers", "stock", "--parts", "ruler"])
    hide(monkeypatch, *optional())
    others = [part for part in PARTS if part not in ("ruler", "written")]
    retrieval.main(["--tiny", "--out", str(tmp_path), "--readers", "stock", "--parts", *others])
    rows = json.loads((tmp_path / "retrieval.json").read_text(encoding="utf-8"))["rows"]
    assert any("RULER" in row["what"] for row in rows)
    assert any("pass key" in row["what"] for row in rows)


@pytest.mark.parametrize("absent", ["trl", "datasets", "jinja2"])
def test_a_chain_scores_nothing_that_it_cannot_train(
    absent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prepare_writer(tmp_path)
    hide(monkeypatch, absent)
    monkeypatch.setattr(chain, "scored", never)
    with pytest.raises(ImportError, match=rf"{absent}.* Install it: pip install"):
        chain.run(config)
    assert not Path(config["out"]).exists()


def test_the_demo_begins_with_what_it_ends_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_longctx.hub.locate", never)
    for module in ("matplotlib", "jinja2"):
        with monkeypatch.context() as without:
            hide(without, module)
            with pytest.raises(ImportError, match=rf"{module}.* Install it: pip install"):
                demo.run(tmp_path / "out", short=True)
    assert not (tmp_path / "out").exists()


def test_scores_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = prepare_writer(tmp_path)
    monkeypatch.setattr(score, "settings", lambda _: config)
    monkeypatch.setattr(score, "write", fails_after(score.write, 1))
    out = tmp_path / "scores.json"
    monkeypatch.setattr("sys.argv", ["score", "--out", str(out)])
    with pytest.raises(RuntimeError, match="no memory"):
        score.main()
    kept = json.loads(out.read_text(encoding="utf-8"))
    assert len(kept["scores"]["tasks"]) + len(kept["scores"]["writing"]) > 0


def test_trl_beside_ours_is_looked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "trl")
    monkeypatch.setattr(beside, "measured", never)
    with pytest.raises(ImportError, match=r"of --lines, \"TRL's SFTTrainer, offload\" needs TRL .* '\.\[trl\]'"):
        beside.main(["--out", str(tmp_path)])
    assert modules(beside.packages(["--smoke"])) == modules(beside.packages(["--lines", beside.STOCK])) == set()


def test_a_folder_that_cannot_be_written_is_found_first(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(train, "load_extended", never)
    for place in (tmp_path / "file", tmp_path / "file/out"):
        with pytest.raises((ValueError, OSError), match="file"):
            check_fresh(place, resume=False)
        with pytest.raises((ValueError, OSError), match="file"):
            train.run(config | {"out": str(place)})
    monkeypatch.setattr(curriculum, "prepare", never)
    with pytest.raises(ValueError, match=r"--out .*file is a file"):
        curriculum.run(config, curriculum.TINY, None, tmp_path, tmp_path / "file/found.json")
    check_fresh(tmp_path / "new/out", resume=False)
    assert not (tmp_path / "new").exists()


def test_a_shared_training_is_saved_before_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sft_smoke.prepare(tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    # the first evaluation is before the first step
    evaluate = fails_after(sft.SequenceParallelTrainer.evaluate, 1)
    monkeypatch.setattr(sft.SequenceParallelTrainer, "evaluate", evaluate)
    with pytest.raises(RuntimeError, match="no memory"):
        sft.run(config)
    assert (tmp_path / "out/model/model.safetensors").exists()


def test_jobs_that_lack_their_texts_do_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(jobs, "Schedule", never)
    asked = ["run", "ladder", "extend_curriculum", "--out", str(tmp_path / "out"), "--seconds", "9"]
    assert jobs.main([*asked, "--documents", str(tmp_path / "my texts")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: extend_curriculum: there are no texts in")
    assert "my texts" in said
    (tmp_path / "my texts").mkdir()
    (tmp_path / "my texts/one.txt").write_text("One.", encoding="utf-8")
    with pytest.raises(pytest.fail.Exception, match="it has begun"):
        jobs.main([*asked, "--documents", str(tmp_path / "my texts")])


def test_jobs_that_lack_a_package_do_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(jobs, "Schedule", never)
    monkeypatch.setattr(jobs, "detached", never)
    hide(monkeypatch, "wonderwords", "trl")
    out = tmp_path / "out"
    words = ["--out", str(out), "--seconds", "9"]
    asked = ["run", "ladder", "extend_yarn", "retrieval_recall", "retrieval_written", "writer_short"]
    for how in ([], ["--detach"]):
        assert jobs.main([*asked, *words, *how]) == 2
        said = capsys.readouterr().err
        assert "Error: extend_yarn, retrieval_written: needles are made of the words in wonderwords" in said
        assert "writer_short: this recipe trains by TRL" in said
        assert "ladder" not in said
        assert "retrieval_recall" not in said
    assert not out.exists()
