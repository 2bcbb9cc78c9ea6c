"""`hf-longctx ask`: many questions, one reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

pytest.importorskip("gguf")
from hf_longctx.hub import convert, load
from tests.cli.test_cli import complaint, run
from tests.hub.tiny import write_gguf
from tests.storage.test_files import held

QUESTIONS = ["Who asks?", "What is the answer to the second, somewhat longer question?", "Why?"]
DOCUMENT = "One line of the document.\nAnother line, and then it ends.\n"
SHORT = ["--max-new-tokens", "6"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    return str(convert(write_gguf(folder / "tiny.gguf"), cache_dir=folder / "cache"))


@pytest.fixture
def files(tmp_path: Path) -> list[str | Path]:
    (tmp_path / "document.txt").write_text(DOCUMENT)
    (tmp_path / "questions.txt").write_text("\n\n".join(QUESTIONS) + "\n")
    return ["--document", tmp_path / "document.txt", "--questions", tmp_path / "questions.txt"]


def test_answers_are_those_of_stock(model: str, files: list[str | Path], tmp_path: Path) -> None:
    from hf_longctx.sharing.questions import Prompt

    result = run("ask", model, *files, *SHORT, "--out", tmp_path / "answers.jsonl", "--batch-size", "2")
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["question"] for row in found] == QUESTIONS
    loaded, tokenizer = load(model)
    prompt = Prompt(tokenizer, [DOCUMENT.strip()])
    for row in found:
        ids = torch.cat([prompt.document_ids, torch.tensor(prompt.question(row["question"]))])[None]
        out = loaded.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert row["answer"] == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_a_document_is_read_once(
    model: str, files: list[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["ask", model, *files, *SHORT, "--prefix-cache", tmp_path / "kept"]
    first = run(*arguments)
    assert first.exit_code == 0, first.output
    assert all(f"> {question}\n" in first.stdout for question in QUESTIONS)
    (file,) = (tmp_path / "kept").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    damaged = run(*arguments)
    assert damaged.stdout == first.stdout
    assert file.read_bytes() == whole

    def unread(*args: object, **kwargs: object) -> None:
        raise AssertionError("the document was read again")

    monkeypatch.setattr("hf_longctx.sharing.kept.shared_prefix", unread)
    assert run(*arguments).stdout == first.stdout


def test_answers_come_though_nothing_can_be_kept(
    model: str,
    files: list[str | Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise SafetensorError("No space left on device")

    arguments = ["ask", model, *files, *SHORT, "--prefix-cache", tmp_path / "kept"]
    monkeypatch.setattr("hf_longctx.sharing.file.save_file", full)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert f"> {QUESTIONS[-1]}\n" in result.stdout
    assert "not kept for the next time" in caplog.text


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"])
def test_questions_end_at_line_feeds_only(inside: str, tmp_path: Path) -> None:
    from hf_longctx.cli.ask import _lines

    (tmp_path / "x").write_bytes(f"Who{inside}asks?\r\n\r\nWhy?\nHow?".encode())
    assert _lines(tmp_path / "x") == [f"Who{inside}asks?", "Why?", "How?"]


def interrupted_after(n: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ctrl-C while the batch after the first `n` questions is answered; the questions that were asked."""
    from hf_longctx.sharing import questions

    stock, asked = questions.answers, []

    def breaking(model: Any, prompt: Any, rows: Any, **how: Any) -> Any:
        for question, answer in zip(rows, stock(model, prompt, rows, **how), strict=True):
            if len(asked) == n:
                raise KeyboardInterrupt
            asked.append(question)
            yield answer

    monkeypatch.setattr(questions, "answers", breaking)
    return asked


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_an_interrupted_run_keeps_its_answers_and_the_same_command_adds_the_rest(
    model: str, files: list[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    arguments = ["ask", model, *files, *SHORT, "--batch-size", "1", "--out"]
    assert run(*arguments, tmp_path / "whole").exit_code == 0
    whole = (tmp_path / "whole").read_text(encoding="utf-8").splitlines()
    out = tmp_path / "part"
    with monkeypatch.context() as patch:
        interrupted_after(stop, patch)
        result = run(*arguments, out)
    assert result.exit_code == 130
    assert "the same command continues" in " ".join(result.stderr.split())
    assert out.exists() == bool(stop), "nothing is made for nothing"
    if stop:
        assert out.read_text(encoding="utf-8").splitlines() == whole[:stop]
        with out.open("ab") as file:  # the power failed in the middle of a line
            file.write(whole[stop][:20].encode())
    with monkeypatch.context() as patch:
        asked = interrupted_after(-1, patch)
        assert run(*arguments, out).exit_code == 0
    assert asked == QUESTIONS[stop:]
    assert out.read_text(encoding="utf-8").splitlines() == whole

    # once more, and with another question: what is there is not asked again
    (tmp_path / "questions.txt").write_text("\n".join([*QUESTIONS, "And then?", "And then?"]))
    with monkeypatch.context() as patch:
        asked = interrupted_after(-1, patch)
        assert run(*arguments, out).exit_code == 0
    assert asked == ["And then?"] * 2
    assert out.read_text(encoding="utf-8").splitlines()[:3] == whole


def test_what_was_there_outlives_every_other_run(model: str, files: list[str | Path], tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    arguments = ["ask", model, *files, "--out", out]
    assert run(*arguments, *SHORT).exit_code == 0
    kept = out.read_bytes()
    scaled = "--method", "rope_scaling", "--set", "factor=2"
    assert "answers of another run" in complaint(run(*arguments, "--max-new-tokens", "3"))
    assert "answers of another run" in complaint(run(*arguments, *SHORT, *scaled))
    (tmp_path / "document.txt").write_text("Another document.")
    assert "answers of another run" in complaint(run(*arguments, *SHORT))
    assert out.read_bytes() == kept
    for text in ("my notes", '{"question": "q", "answer": "of an older release"}\n', "[1]\n"):
        out.write_text(text)
        # there is no such model: who looks for it first says so
        assert "something else" in complaint(run("ask", tmp_path / "none", *files, "--out", out))
        assert out.read_text() == text


def test_a_second_run_into_the_same_file_says_so(files: list[str | Path], tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    process = held(tmp_path / "out", "file")
    try:
        said = complaint(run("ask", tmp_path / "none", *files, "--out", tmp_path / "out"))
        assert "another run is writing there now" in said
    finally:
        process.kill()
        process.wait()


def test_wrong_input_is_one_line(model: str, files: list[str | Path], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "empty" in complaint(run("ask", model, *files[:2], "--questions", tmp_path / "empty.txt"))
    assert "No text file" in complaint(run("ask", model, *files[:2], "--questions", tmp_path / "none.txt"))
    kept = "--prefix-cache", tmp_path / "questions.txt"
    assert "expected a folder" in complaint(run("ask", tmp_path / "no model", *files, *kept))  # before it is loaded
    assert "--out" in complaint(run("ask", model, *files, "--out", tmp_path / "no" / "answers.jsonl"))


def test_what_cannot_share_a_prefix_is_refused_early(
    model: str, files: list[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # there is no such model: who looks for it first says so
    windowed = complaint(run("ask", tmp_path / "none", *files, "--method", "lm_infinite", "--set", "n_local=16"))
    assert "keeps un-rotated keys" in windowed
    assert "undo" not in windowed, "which a command cannot do"

    def unread(*args: object) -> None:
        raise AssertionError("the document was read")

    monkeypatch.setattr("hf_longctx.sharing.questions.Prompt", unread)
    moving = "--method", "rope_scaling", "--set", "type=dynamic", "--set", "factor=2"
    assert "changes its frequencies with the length" in complaint(run("ask", model, *files, *moving))
