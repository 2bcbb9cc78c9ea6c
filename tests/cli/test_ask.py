"""`hf-longctx ask`: many questions, one reading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

pytest.importorskip("gguf")
from hf_longctx.checkpoints import convert, load
from tests.checkpoints.tiny import write_gguf
from tests.cli.test_cli import complaint, run

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
    from hf_longctx.questions import Prompt

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

    monkeypatch.setattr("hf_longctx.questions.shared_prefix", unread)
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
    monkeypatch.setattr("hf_longctx.cache.prefix_file.save_file", full)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert f"> {QUESTIONS[-1]}\n" in result.stdout
    assert "not kept for the next time" in caplog.text


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"])
def test_questions_end_at_line_feeds_only(inside: str, tmp_path: Path) -> None:
    from hf_longctx.cli_ask import _lines

    (tmp_path / "x").write_bytes(f"Who{inside}asks?\r\n\r\nWhy?\nHow?".encode())
    assert _lines(tmp_path / "x") == [f"Who{inside}asks?", "Why?", "How?"]


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

    def unread(*args: object) -> None:
        raise AssertionError("the document was read")

    monkeypatch.setattr("hf_longctx.questions.Prompt", unread)
    moving = "--method", "rope_scaling", "--set", "type=dynamic", "--set", "factor=2"
    assert "changes its frequencies with the length" in complaint(run("ask", model, *files, *moving))
