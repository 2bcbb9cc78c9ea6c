"""`hf-longctx eval` on suites, and `hf-longctx lm-eval`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("gguf")
pytest.importorskip("wonderwords")
from hf_longctx.hub import convert
from tests.cli.test_cli import complaint, run
from tests.hub.tiny import write_gguf

EXTEND = ["--method", "lm_infinite", "--set", "n_local=16"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    return str(convert(write_gguf(folder / "tiny.gguf"), cache_dir=folder / "cache"))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples go into a folder of the test's own."""
    monkeypatch.setattr("hf_longctx.hub.gguf.cache_home", lambda: tmp_path / "home")


def test_a_suite_of_tasks_and_files(model: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    sample = {
        "task": "mine",
        "context": "a b c",
        "question": "?",
        "answers": ["a"],
        "max_new_tokens": 2,
        "metric": "exact",
    }
    file.write_text(json.dumps(sample) + "\n")
    result = run(
        "eval", model, "--task", f"passkey,jsonl:{file}", "--lengths", "900,1000", "--task-set", "samples=2,1",
        "--window", "950", "--out", tmp_path / "out", *EXTEND,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["settings"]["configurations"] == ["stock", "last 950 tokens", "LMInfinite"]
    assert [line["detail"]["samples"]["LMInfinite"] for line in found["rows"][:4]] == [2, 1, 1, 1]
    assert (tmp_path / "out" / "predictions.jsonl").exists()
    assert len(list((tmp_path / "home" / "samples").iterdir())) == 2
    assert "mine" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "niah_singel_1"], "Did you mean niah_single_1?"),
        (["--task", "Ruller"], "Did you mean ruler?"),
        (["--task", "ruller"], "There are: cwe"),
        (["--task", "longbnch:file.jsonl"], "Did you mean longbench?"),
        (["--task", "kv,other:file.jsonl"], "READER is one of giraffe, hellobench, jsonl, leval"),
        (["--task", "qa_2"], "Give it as qa_2:FILE"),
        (["--task", "longbench:nowhere.jsonl"], "No file at nowhere.jsonl"),
        (["--task", "kv", "--task-set", "samples=1,2,3"], "expected one number, or one for each of 2 lengths"),
        (["--task", "kv", "--task-set", "samples=many"], "samples='many' is str, expected int"),
        (["--task", "ppl", "--task-set", "samples=3"], "ppl: no setting 'samples'"),
        (["--task", "kv", "--task-set", "batch_row=3"], "kv: no setting 'batch_row'. Did you mean 'batch_rows'?"),
        (["--task", "ppl,kv"], "ppl is measured alone"),
        (["--task", "kv", "--depths", "2"], "depth=2.0: expected 0"),
    ],
)
def test_eval_says_what_is_wrong_with_a_suite(
    model: str,
    tmp_path: Path,
    options: list[str],
    message: str,
) -> None:
    assert message in complaint(run("eval", model, "--lengths", "500,600", "--out", tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "passkey", "--lengths", "0"], "above 0"),
        (["--task", "passkey", "--lengths", "400", "--depths", "1.5"], "depth=1.5: expected 0"),
        (["--task", "passkey", "--lengths", "400", "--task-set", "trials=0"], "trials=0: expected at least 1"),
        (["--task", "ppl", "--lengths", "512"], "Use lengths above 1024 or fewer targets"),
        (["--task", "kv", "--lengths", "-5"], "give at least one, above 0"),
        (["--task", "kv", "--lengths", "500", "--depths", "2"], "depth=2.0: expected 0"),
    ],
)
def test_eval_refuses_before_it_loads_a_model(tmp_path: Path, options: list[str], message: str) -> None:
    # there is no such model: who looks for it first says so
    assert message in complaint(run("eval", tmp_path / "none", "--out", tmp_path / "out", *options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "kv", "--lengths", "30,900"], "length=30: kv takes more tokens"),
        (["--task", "passkey", "--lengths", "30,900"], "length=30: "),
        (["--task", "ppl", "--lengths", "9000000"], "documents of 9,000,000 need"),
        (["--task", "niah", "--lengths", "900", "--text", "nowhere.txt"], "No text file at nowhere.txt"),
        (["--task", "jsonl:FILE", "--lengths", "900"], "line 2: the key 'context' is missing"),
    ],
)
def test_what_no_task_can_do_is_said_without_the_weights(
    model: str, tmp_path: Path, options: list[str], message: str
) -> None:
    light = tmp_path / "light"
    shutil.copytree(model, light, ignore=shutil.ignore_patterns("*.safetensors"))
    line = '{"task": "t", %s "question": "?", "answers": [], "max_new_tokens": 2, "metric": "exact"}\n'
    (tmp_path / "mine.jsonl").write_text(line % '"context": "a",' + line % "")
    given = [option.replace("FILE", str(tmp_path / "mine.jsonl")) for option in options]
    assert message in complaint(run("eval", light, "--out", tmp_path / "out", *given))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["passkey", "kv"])
def test_a_length_that_holds_no_prompt_writes_nothing(model: str, tmp_path: Path, task: str) -> None:
    options = "--task", task, "--lengths", "30,5000", "--out", tmp_path / "out"
    assert "length=30: " in complaint(run("eval", model, *options))
    assert not (tmp_path / "out").exists()


def test_lm_eval_runs_a_task_of_ones_own(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    from tests.evaluation.test_harness import TASK

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": "0123456789" * 9, "answer": "?"}) + "\n")
    (tmp_path / "mine.yaml").write_text(TASK.format(name="mine", path=tmp_path / "data.jsonl"))
    options = ["--tasks", "mine", "--include", tmp_path, "--out", tmp_path / "out"]
    result = run("lm-eval", model, *options, *EXTEND)
    assert result.exit_code == 0, result.output
    assert "max_length=1,048,576" in result.stderr
    (line,) = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert line["what"] == "mine, exact_match"
    cut = run("lm-eval", model, *options, "--truncate", "error", "--max-length", "20")
    assert cut.exit_code == 2
    assert "Error: a prompt has" in cut.stderr  # behind lm-eval's progress bar


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metadata", "{"], "not JSON"),
        (["--metadata", "[1]"], "expected a JSON object"),
        (["--include", "nowhere"], "expected a folder with task YAMLs"),
        (["--set", "n_local=4"], "Add --method NAME"),
        (["--truncate", "right"], "--truncate right: expected one of auto, left, middle, error"),
    ],
)
def test_lm_eval_says_what_is_wrong(model: str, options: list[str], message: str) -> None:
    assert message in complaint(run("lm-eval", model, "--tasks", "mine", *options))


def test_lm_eval_that_is_not_installed_is_said_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    said = complaint(run("lm-eval", tmp_path / "none", "--tasks", "mine"))
    assert "lm-eval is not installed. Install it: pip install '.[lm-eval]' in a checkout" in said


def test_segments_beyond_the_window_are_refused_before_anything_is_measured(model: str, tmp_path: Path) -> None:
    options = ["--task", "kv", "--lengths", "1200", "--task-set", "samples=1", "--out", tmp_path / "out"]
    result = run("eval", model, *options, "--method", "xl3m", "--set", "segment=9000", "--set", "window=600")
    assert "a segment of 9,000 tokens does not fit" in complaint(result)
    assert not (tmp_path / "out").exists()


def test_a_suite_reads_in_segments(model: str, tmp_path: Path) -> None:
    result = run(
        "eval", model, "--task", "kv", "--lengths", "1200", "--task-set", "samples=1", "--window", "600", "--alone",
        "--out", tmp_path / "out", "--method", "xl3m", "--set", "segment=64", "--set", "overlap=8",
        "--set", "window=600",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "results.json").read_text())["settings"]["configurations"] == ["XL3M"]


@pytest.mark.parametrize("task", ["ppl", "passkey"])
def test_the_grids_do_not_read_in_segments(model: str, tmp_path: Path, task: str) -> None:
    options = "--task", task, "--lengths", "64", "--method", "xl3m", "--out", tmp_path / "out"
    assert f"is a way to generate, not a change of the model. {task} is measured on the model itself" in complaint(
        run("eval", model, *options)
    )
    assert not (tmp_path / "out").exists()
