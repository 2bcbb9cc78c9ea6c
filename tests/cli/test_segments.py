"""`hf-longctx generate --method xl3m`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gguf")
from hf_longctx.hub import convert
from tests.cli.test_cli import complaint, run
from tests.hub.tiny import write_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    return str(convert(write_gguf(folder / "tiny.gguf"), cache_dir=folder / "cache"))


@pytest.fixture
def asked(model: str, tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text("A hall of hell, and 007. " * 100)
    return [
        "generate", model, "--method", "xl3m", "--document", str(tmp_path / "text.txt"), "--question", "Where is it?",
        "--max-new-tokens", "4", "--device", "cpu", "--set", "segment=16", "--set", "overlap=4", "--set", "window=128",
    ]  # fmt: skip


def test_the_answer_is_on_stdout_and_what_was_read_beside_it(asked: list[str], tmp_path: Path) -> None:
    result = run(*asked, "--scores", tmp_path / "scores")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip()
    assert " segments (" in result.stderr
    assert "\n\n" not in result.stderr  # a progress bar in a log would be empty lines
    again = run(*asked, "--scores", tmp_path / "scores")
    assert again.stdout == result.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--stream"], "leave --stream"),
        (["--prompt", "a"], "--method xl3m reads a document"),
        (["--set", "segmnt=3"], "Did you mean 'segment'"),
        (["--set", "score=best"], "expected one of gain, question_nll, entropy"),
        (["--set", "keep=2"], "keep=2: expected 0"),
    ],
)
def test_what_is_wrong_is_one_line(asked: list[str], more: list[str], message: str) -> None:
    assert message in complaint(run(*asked, *more))


def test_files_that_are_no_text_are_one_line(asked: list[str], tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    for data, message in ((b"", "is empty"), (b"ab\0cd", "holds zero bytes"), (b"caf\xe9 " * 9, "is not UTF-8")):
        file.write_bytes(data)
        assert message in complaint(run(*asked))


def test_a_folder_carries_the_settings(model: str, tmp_path: Path) -> None:
    settings = ["--set", "segment=16", "--set", "overlap=4", "--set", "window=128"]
    result = run("extend", model, "--method", "xl3m", *settings, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (tmp_path / "text.txt").write_text("A hall of hell, and 007. " * 100)
    asked = ["--document", tmp_path / "text.txt", "--question", "Where?", "--max-new-tokens", "2", "--device", "cpu"]
    result = run("generate", tmp_path / "out", "--method", "xl3m", *asked)
    assert result.exit_code == 0, result.output
    assert " segments (" in result.stderr  # with the default window it would have been read whole


def test_a_short_text_and_a_question_of_one_letter_are_answered_as_a_whole(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A hall.")
    asked[asked.index("Where is it?")] = "?"
    result = run(*asked)
    assert result.exit_code == 0, result.output
    assert "tokens fit the window" in result.stderr


def test_scores_belong_to_segments(model: str) -> None:
    assert "add --method xl3m" in complaint(run("generate", model, "--prompt", "a", "--scores", "file"))
