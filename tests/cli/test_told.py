"""What a command says: its options by their names, nothing cut on a narrow terminal, no warning that is not meant."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer
from typer.testing import CliRunner

from hf_longctx import LMInfinite, PositionFree, StreamingLLM
from hf_longctx.cli import main as cli
from hf_longctx.cli import options
from hf_longctx.evaluation.report.files import ResultFile
from hf_longctx.evaluation.report.render import _rich, terminal
from hf_longctx.evaluation.report.sections import Table, Text, sections
from tests.tiny import text, tiny, tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task", "ppl", "--lengths", "64", "--method", "lm_infinit"], "--method 'lm_infinit': no such method"),
        (["--task", ",", "--lengths", "64"], "--task ,: expected"),
    ],
)
def test_wrong_values_of_eval_are_told_as_they_were_typed(
    model: str, tmp_path: Path, more: list[str], message: str
) -> None:
    result = run("eval", model, *more, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "\n \n\t\n"])
def test_a_file_without_a_question_is_told_as_such(model: str, tmp_path: Path, content: str) -> None:
    questions, document = tmp_path / "questions.txt", tmp_path / "document.txt"
    questions.write_text(content)
    document.write_text("w3 w4 w5")
    result = run("ask", model, "--document", document, "--questions", questions)
    assert result.exit_code == 2
    assert f"--questions {questions}: it is empty; expected one question per line." in result.stderr
    questions.unlink()
    result = run("ask", model, "--document", document, "--questions", questions)
    assert f"No text file at --questions {questions}: expected one with one question per line" in result.stderr


def test_what_extend_says_can_be_copied_whole(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "screen", Console(width=40))
    out = tmp_path / "a folder with [a] long name" / "extended"
    lines = run("extend", model, "--method", "lm_infinite", "--set", "n_local=16", "--out", out).stdout.splitlines()
    assert len(lines) == 2
    assert lines[1].endswith(f'from_pretrained("{out}")')


def printed(table: Any) -> str:
    console = Console(width=40, file=io.StringIO())
    console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 40
    assert "…" not in "".join(lines)
    return "".join(lines)


def test_tables_of_measurements_lose_nothing_in_40_columns() -> None:
    names = ["stock", "last 8192 tokens", "StreamingLLM"]
    line = {"length": 8192, "trials": dict.fromkeys(names, 1), "correct": dict.fromkeys(names, 1), "depth": 0.0}
    line |= {"seconds": dict.fromkeys(names, 12345.6), "peak_gib": {}}
    settings = {"task": "passkey", "configurations": names, "text": "filler"}
    rows = [{"what": "passkey", "value": 1.0, "unit": "share of trials", "beside": {}, "detail": line}]
    rows += [{"what": "effective length", "value": 8192, "unit": "tokens", "beside": dict.fromkeys(names[:2], 4096)}]
    head = {"model": "m", "hardware": "h", "settings": settings}
    printed(terminal(sections([ResultFile("results.json", {**head, "rows": rows})]), []))
    printed(_rich(Table("caption", ["tokens read", *names], [[Text("8,192")] * 4])))


def test_methods_show_whole_addresses_in_40_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "screen", Console(width=40))
    assert "…" not in run("methods").stdout


@pytest.mark.parametrize(
    ("method", "reminded"),
    [
        (LMInfinite(n_local=16), False),
        (LMInfinite(n_local=16, top_k=2, top_k_from_layer=1), False),
        (StreamingLLM(window=16), False),
        (PositionFree(), True),
        (None, True),
    ],
)
def test_the_trained_length_is_warned_of_where_it_counts(
    method: Any, reminded: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation import stopping_criteria

    monkeypatch.setattr(stopping_criteria.logger, "warning_once", stopping_criteria.logger.warning)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = tiny(max_position_embeddings=32)
    if method is not None:
        method.apply(model)
    model.generate(text(length=40), max_new_tokens=3)
    assert ("friendly reminder" in caplog.text) == reminded


def test_eval_is_not_warned_of_the_lengths_that_it_measures(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation import stopping_criteria

    monkeypatch.setattr(stopping_criteria.logger, "warning_once", stopping_criteria.logger.warning)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    options = ["--task", "passkey", "--lengths", "600", "--depths", "0", "--task-set", "trials=1", "--device", "cpu"]
    result = run("eval", model, *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "friendly reminder" not in caplog.text
    assert not stopping_criteria.logger.filters


def test_an_empty_gguf_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    result = run("plan", tmp_path / "empty.gguf", "--length", "8k")
    assert result.exit_code == 2
    assert "is empty, a GGUF file starts with" in result.stderr


def test_kernels_are_timed_and_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "screen", Console(width=40))
    result = run("kernels", "--chunk", "16", "--head-dim", "8", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "reference" in result.stdout
    assert "…" not in result.stdout
    assert not result.stderr


def test_an_adapter_without_weights_is_one_line(model: str, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path)
    config = {"peft_type": "LORA", "base_model_name_or_path": model, "r": 2, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    result = run("generate", tmp_path, "--prompt", "w3")
    assert result.exit_code == 2
    assert "no adapter_model.safetensors beside it" in result.stderr
