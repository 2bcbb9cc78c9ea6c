"""The commands as a user types them: what they print, what they write, and what they say to wrong input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner, Result

pytest.importorskip("gguf")
pytest.importorskip("hf_longctx.methods.lm_infinite")
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_longctx.cli import main as cli
from hf_longctx.cli import options
from hf_longctx.hub import convert
from hf_longctx.settings import GUIDANCE
from tests.hub.tiny import write_gguf

EXTEND = ["--method", "lm_infinite", "--set", "n_local=16"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    return str(convert(write_gguf(folder / "tiny.gguf"), cache_dir=folder / "cache"))


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def complaint(result: Result, code: int = 2) -> str:
    """The one line on stderr of a command that failed as it should."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return line


def test_methods_are_listed_with_settings_and_paper() -> None:
    result = run("methods")
    assert result.exit_code == 0
    assert "lm_infinite" in result.stdout
    assert "n_global=10" in result.stdout
    assert "arxiv.org/abs/2308.16137" in result.stdout


def test_methods_say_when_to_use_them_within_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    import hf_longctx

    monkeypatch.setattr(options, "screen", Console(width=80))
    printed = run("methods").stdout
    words = " ".join(printed.split())
    assert max(map(len, printed.splitlines())) <= 80
    for name, cls in hf_longctx.list_methods().items():
        assert f"{name}  hf_longctx.{cls.__name__}\n" in printed
        assert list(cls.guidance()) == list(GUIDANCE), name
        for label, text in cls.guidance().items():
            assert len(text) > 20, name
            assert len(text) < 240, f"{name}, {label}: a sentence or two"
            assert f"{label} {text}" in words, name


def test_methods_as_json_can_be_read_by_a_program() -> None:
    found = {entry["name"]: entry for entry in json.loads(run("methods", "--json").stdout)}
    assert found["lm_infinite"]["class"] == "LMInfinite"
    assert found["lm_infinite"]["settings"]["top_k"]["default"] == 0


def test_extended_model_has_the_method_after_plain_from_pretrained(model: str, tmp_path: Path) -> None:
    out = tmp_path / "extended"
    result = run("extend", model, *EXTEND, "--out", out)
    assert result.exit_code == 0, result.output
    saved = json.loads((out / "config.json").read_text())
    assert saved["hf_longctx"]["methods"][0]["n_local"] == 16
    assert saved["dtype"] == "bfloat16"
    ids = torch.arange(3, 67)[None]
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(ids).logits
    extended = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)(ids).logits
    assert not torch.equal(stock, extended)
    assert AutoTokenizer.from_pretrained(out).chat_template


def test_extend_takes_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    result = run("extend", write_gguf(tmp_path / "tiny.gguf"), *EXTEND, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_extend_says_what_loading_needs(model: str, tmp_path: Path) -> None:
    scale = ["--method", "rope_scaling", "--set", "factor=2"]
    assert "import hf_longctx" in run("extend", model, *EXTEND, "--out", tmp_path / "keyed").stdout
    assert "import hf_longctx" not in run("extend", model, *scale, "--out", tmp_path / "native").stdout
    both = run("extend", tmp_path / "keyed", *scale, "--out", tmp_path / "both").stdout
    assert "import hf_longctx" in both, "the model carried a method before"
    again = complaint(run("extend", tmp_path / "keyed", *EXTEND, "--out", tmp_path / "again"))
    assert "start from the model without it" in again


def test_extend_refuses_a_folder_that_is_not_empty_unless_forced(model: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    assert "is not empty" in complaint(run("extend", model, *EXTEND, "--out", tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert run("extend", model, *EXTEND, "--out", tmp_path, "--force").exit_code == 0
    assert (tmp_path / "mine.txt").read_text() == "keep me"
    assert (tmp_path / "config.json").is_file()


def test_extend_on_a_full_disk_leaves_nothing(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    assert "No space left" in complaint(run("extend", model, *EXTEND, "--out", tmp_path / "out"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--method", "lm_infinit"], "Did you mean 'lm_infinite'"),
        (["--method", "lm_infinite", "--set", "n_lokal=4"], "Did you mean 'n_local'"),
        (["--method", "lm_infinite", "--set", "n_local"], "key=value"),
        (["--method", "lm_infinite", "--set", "n_local=many"], "expected int"),
        (["--method", "lm_infinite", "--set", "n_local=0"], "at least 1"),
    ],
    ids=["unknown method", "unknown setting", "no value", "wrong type", "window of 0"],
)
def test_wrong_settings_are_one_line_and_write_nothing(
    model: str, tmp_path: Path, settings: list[str], message: str
) -> None:
    assert message in complaint(run("extend", model, *settings, "--out", tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_generate_streams_an_answer_with_and_without_a_method(model: str) -> None:
    for settings in (
        [],
        EXTEND,
        [*EXTEND, "--set", "top_k=2", "--set", "top_k_from_layer=0", "--prefill-chunk-size", "8"],
    ):
        result = run(
            "generate", model, "--prompt", "hello 007, " * 8, "--max-new-tokens", "4", "--device", "cpu", *settings
        )
        assert result.exit_code == 0, result.output
        assert "tokens to read" in result.stderr
        assert result.stdout.strip()


def test_generate_reads_a_document(model: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A hall of hell. " * 20)
    question = ["--question", "Where?", "--max-new-tokens", "2", "--device", "cpu"]
    result = run("generate", model, "--document", tmp_path / "text.txt", *question, *EXTEND)
    assert result.exit_code == 0, result.output
    assert "indexing errors" not in result.output, "a text longer than the trained length is what we are for"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give either --prompt"),
        (["--prompt", "  \n"], "--prompt is empty"),
        (["--prompt", "a", "--document", "b"], "Give either --prompt"),
        (["--prompt", "a", "--question", "b"], "--question belongs to a --document"),
        (["--document", "b"], "needs a --question"),
        (["--document", "nowhere.txt", "--question", "b"], "nowhere.txt"),
        (["--prompt", "a", "--set", "n_local=4"], "Add --method NAME"),
        (["--prompt", "a", "--dtype", "float7"], "--dtype float7: expected one of"),
        (["--prompt", "a", "--device", "gpu"], "device 'gpu' cannot be used here"),
    ],
)
def test_generate_says_what_is_wrong(model: str, arguments: list[str], message: str) -> None:
    assert message in complaint(run("generate", model, *arguments))


def test_model_that_is_not_there_is_one_line() -> None:
    assert "no such folder" in complaint(run("generate", "./nowhere", "--prompt", "a"))


def test_truncated_gguf_is_one_line(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:-1000])
    assert "cut short" in complaint(run("generate", file, "--prompt", "a"))


def test_eval_writes_numbers_and_a_figure(model: str, tmp_path: Path) -> None:
    pytest.importorskip("hf_longctx.evaluation.runner")
    pytest.importorskip("matplotlib")
    (tmp_path / "text.txt").write_text("the hall of hell, 007. " * 200)
    result = run(
        "eval", model, "--task", "ppl", "--lengths", "64,96", "--window", "32", "--task-set", "n_targets=16",
        "--task-set", "documents=1", "--text", tmp_path / "text.txt", "--out", tmp_path / "out", "--device", "cpu",
        *EXTEND,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["detail"]["length"] for row in found["rows"]] == [64, 96]
    assert (tmp_path / "out" / "figure.png").is_file()
    assert found["model"] == Path(model).name


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--lengths", "4x", "--lengths 4x: expected whole numbers"),
        ("--lengths", "1k,,2k", "expected whole numbers of tokens"),
        ("--depths", "a", "--depths a: expected numbers"),
        ("--task", "bleu", "no such task"),
        ("--task", "pppl", "Did you mean ppl?"),
        ("--task", "pasky", "Did you mean passkey?"),
    ],
)
def test_eval_says_what_is_wrong(model: str, tmp_path: Path, option: str, value: str, message: str) -> None:
    options = {"--task": "ppl", "--lengths": "64", "--device": "cpu", option: value}
    flat = [part for pair in options.items() for part in pair]
    assert message in complaint(run("eval", model, "--out", tmp_path / "out", *flat))


def test_eval_into_a_file_is_refused_before_it_measures(model: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    options = ["--task", "ppl", "--lengths", "64", "--device", "cpu", "--out", tmp_path / "out"]
    assert "is a file; expected the name of a folder" in complaint(run("eval", model, *options))


def test_interruption_is_one_line_and_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_longctx.cli.generate.prompt_text", interrupt)
    assert complaint(run("generate", "m", "--prompt", "a"), code=130) == "Error: interrupted"


def test_debug_shows_the_traceback() -> None:
    result = run("--debug", "generate", "m", "--prompt", "")
    assert isinstance(result.exception, ValueError)


def test_bug_of_ours_is_not_dressed_up_as_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr("hf_longctx.cli.generate.prompt_text", broken)
    assert isinstance(run("generate", "m", "--prompt", "a").exception, AssertionError)


def test_version_names_what_matters_in_a_report() -> None:
    assert re.match(r"hf-longctx \S+ \(transformers \S+, torch \S+, Python 3\.\d+", run("--version").stdout)


def test_help_lists_every_command() -> None:
    result = run("--help")
    assert all(name in result.stdout for name in ("methods", "extend", "generate", "chat", "eval", "demo"))


def test_the_package_is_a_command_too() -> None:
    command = [sys.executable, "-m", "hf_longctx", "methods", "--set"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(cli.__file__).parents[2])
    assert result.returncode == 2
    assert "Usage: hf-longctx methods" in result.stderr
    assert "No such option: --set" in result.stderr


def test_cli_itself_imports_nothing_slow() -> None:
    # The package registers with transformers when it is imported; the command line must not add to that.
    code = (
        "import sys, types; package = types.ModuleType('hf_longctx'); package.__path__ = ['hf_longctx'];"
        "sys.modules['hf_longctx'] = package; import hf_longctx.cli.main;"
        "sys.exit(' '.join({'torch', 'transformers', 'matplotlib'} & set(sys.modules)) or None)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(cli.__file__).parents[2]
    )
    assert result.returncode == 0, result.stderr
