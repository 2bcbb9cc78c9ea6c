"""`chat` and `generate --stream` as a user types them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("gguf")
from hf_longctx.cli import chat as command
from hf_longctx.cli import main as cli
from hf_longctx.hub import convert
from tests.cli.test_cli import EXTEND, complaint, run
from tests.hub.tiny import write_gguf

SHORT = ["--max-new-tokens", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    return str(convert(write_gguf(folder / "tiny.gguf"), cache_dir=folder / "cache"))


def typed(lines: str | bytes, *arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], input=lines)


@pytest.mark.parametrize(
    "settings", [EXTEND, [], ["--method", "streaming_llm"]], ids=["lm_infinite", "default", "sinks"]
)
def test_streamed_document_gives_the_same_answer(model: str, tmp_path: Path, settings: list[str]) -> None:
    (tmp_path / "text.txt").write_text("\n A hall of hell, 007.\nAnd on it goes.\n\n" * 30)
    ask = ["--document", tmp_path / "text.txt", "--question", "Where?", *SHORT]
    whole = run("generate", model, *ask, *(settings or ["--method", "lm_infinite"]))
    streamed = run("generate", model, *ask, *settings, "--stream", "--prefill-chunk-size", "100")
    assert streamed.exit_code == 0, streamed.output
    assert streamed.stdout.strip("\n") == whole.stdout.strip("\n")
    count = whole.stderr.split(" tokens to read")[0].split()[-1]
    assert f"{count} tokens read" in streamed.stderr
    assert ("no --method given: LMInfinite" in streamed.stderr) == (not settings)


def test_document_may_be_standard_input(model: str) -> None:
    result = typed(
        "a hall\n" * 50, "generate", model, "--stream", "--document", "-", "--question", "b", *SHORT, *EXTEND
    )
    assert result.exit_code == 0, result.output
    assert "tokens read" in result.stderr


@pytest.mark.parametrize(("content", "said"), [(b"\x00a", "zero bytes"), (b"", "is empty"), (b"a \xff", "UTF-8")])
def test_document_that_cannot_be_read_is_one_line(model: str, tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    ask = ["--document", tmp_path / "text.txt", "--question", "b"]
    assert said in complaint(run("generate", model, "--stream", *ask, *SHORT, *EXTEND))


def test_model_with_a_method_of_its_own_keeps_it(model: str, tmp_path: Path) -> None:
    run("extend", model, *EXTEND, "--out", tmp_path / "extended")
    result = typed("hi\n", "chat", tmp_path / "extended", *SHORT)
    assert result.exit_code == 0, result.output
    assert "no --method given" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a"], "--stream reads a document"),
        (["--document", __file__], "needs a --question"),
        (["--document", "nowhere.txt", "--question", "b"], "nowhere.txt"),
        (["--document", __file__, "--question", "b", "--method", "position_free"], "keep every key"),
    ],
)
def test_stream_says_what_is_wrong(model: str, arguments: list[str], message: str) -> None:
    assert message in complaint(run("generate", model, "--stream", *arguments))


def test_chat_answers_shows_how_far_it_is_and_leaves(model: str) -> None:
    lines = "hello\n\n/stats\nand you?\n/what\n/stats\n/exit\nnever read\n"
    result = typed(lines, "chat", model, *SHORT, *EXTEND, "--system", "be kind")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") >= 2
    first, second = [line for line in result.stderr.splitlines() if line.startswith("position ")]
    assert "s per token" in first
    assert int(second.split()[1].rstrip(";")) > int(first.split()[1].rstrip(";"))
    assert result.stderr.count("/exit") == 2  # at the start, and for what is no command


def test_chat_ends_with_its_input(model: str) -> None:
    assert typed("", "chat", model, *SHORT, *EXTEND).exit_code == 0


def test_ctrl_c_stops_the_answer_and_not_the_chat(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_longctx.streaming.reader import Reader

    choose = Reader._choose

    def pressing(self: Reader, *args: Any) -> int:
        if self.position > 60:
            os.kill(os.getpid(), signal.SIGINT)
        return choose(self, *args)

    monkeypatch.setattr(Reader, "_choose", pressing)
    result = typed("hello\n/stats\n/exit\n", "chat", model, "--device", "cpu", "--max-new-tokens", "100000", *EXTEND)
    assert result.exit_code == 0, result.output
    assert "position " in result.stderr


def test_chat_without_a_template_is_one_line(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load = command.load_model

    def untuned(*args: Any) -> Any:
        loaded, tokenizer = load(*args)
        tokenizer.chat_template = None
        return loaded, tokenizer

    monkeypatch.setattr(command, "load_model", untuned)
    assert "no chat template" in complaint(run("chat", model, *SHORT))
