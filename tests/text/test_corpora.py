from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from hf_longctx.evaluation import suite
from hf_longctx.evaluation.runner import evaluate
from hf_longctx.evaluation.task import Grid
from hf_longctx.evaluation.tasks import passkey
from hf_longctx.text import corpora as texts
from hf_longctx.text.corpora import beginning, beginning_ids, is_large, load_text, read_documents, tokenize_documents


def test_the_python_docs_are_at_hand() -> None:
    text = load_text("python-docs")
    assert len(text) > 300_000
    assert text == load_text("python-docs")
    assert "Boolean operations" in text


def test_a_python_without_its_docs_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(FileNotFoundError, match="path of a text file"):
        load_text("python-docs")


def test_a_file_is_read_as_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffhé\r\nllo".encode())
    assert load_text(path) == load_text(str(path)) == "hé\nllo"


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "is empty"), (b" \n", "is empty"), (b"ab\0c", "zero bytes"), (b"caf\xe9 au lait", r"byte 3 is 0xe9.*iconv")],
    ids=["empty", "blank", "binary", "latin1"],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_text(tmp_path / "a")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="python-docs"):
        load_text(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="is a folder"):
        load_text(tmp_path)


def test_documents_have_their_length_and_do_not_overlap(bos_tokenizer: Any) -> None:
    text = "".join(chr(97 + i % 26) for i in range(23))
    found = tokenize_documents(bos_tokenizer, text, 5, 3)
    assert found.shape == (3, 5)
    assert found.dtype == torch.int64
    # Spread evenly: 23 // 3 = 7 tokens from one start to the next, and no special tokens.
    assert [bos_tokenizer.decode(row) for row in found] == ["abcde", "hijkl", "opqrs"]
    assert tokenize_documents(bos_tokenizer, text, 23, 1).shape == (1, 23)


def test_a_text_too_short_gives_both_numbers(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"has 23 tokens; 3 documents of 8 need 24"):
        tokenize_documents(tokenizer, "x" * 23, 8, 3)
    with pytest.raises(ValueError, match="at least one"):
        tokenize_documents(tokenizer, "x", 8, 0)


class Opened:
    """How much of a file was read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        stock = texts._Part.read

        def read(part: Any, size: int) -> bytes:
            data = stock(part, size)
            self.bytes += len(data)
            return data

        monkeypatch.setattr(texts._Part, "read", read)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(texts, "LARGE", 2**17)
    path = tmp_path / "large.txt"
    with path.open("w", encoding="utf-8") as file:
        for i in range(25_000):
            file.write(f"{i:06} né\r\n" if i % 100 == 0 else f"{i:06}, a line\n")
    assert path.stat().st_size > 2 * texts.LARGE
    return path


def test_of_a_large_file_no_more_is_read_than_the_documents_take(
    tokenizer: Any, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(monkeypatch)
    found = read_documents(tokenizer, large, 3000, 2)
    assert opened.bytes <= large.stat().st_size / 2
    assert found.shape == (2, 3000)
    whole = load_text(large)
    starts = []
    for row in found:
        said = tokenizer.decode(row)
        assert said.strip("\ufffd") in whole
        assert whole.startswith(said[:6]) or f"\n{said[:6]}" in whole, "it begins with a line"
        starts.append(whole.index(said[:20]))
    size = len(whole)
    assert [round(2 * start / size, 1) for start in starts] == [0, 1]


def test_a_large_file_with_hardly_enough_tokens_is_divided_as_a_small_one(tokenizer: Any, large: Path) -> None:
    tokens = len(tokenizer(load_text(large))["input_ids"])
    for length, n in ((tokens, 1), (tokens // 3, 3)):
        expected = tokenize_documents(tokenizer, load_text(large), length, n)
        assert torch.equal(read_documents(tokenizer, large, length, n), expected)
    with pytest.raises(ValueError, match=f"has {tokens:,} tokens; 2 documents of {tokens:,} need"):
        read_documents(tokenizer, large, tokens, 2)


def test_a_large_file_of_one_line_is_cut_between_characters(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "line.txt"
    monkeypatch.setattr(texts, "LARGE", 2**10)
    path.write_text("é" * 2**16, encoding="utf-8")
    for row in read_documents(tokenizer, path, 2000, 3):
        assert tokenizer.decode(row) == "é" * 1000


def test_the_beginning_of_a_large_file(tokenizer: Any, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_large(large)
    assert not is_large("python-docs")
    opened = Opened(monkeypatch)
    whole = load_text(large)
    assert beginning_ids(tokenizer, large, 5000) == tokenizer(whole[:5000])["input_ids"][:5000]
    assert opened.bytes <= large.stat().st_size / 2
    text = beginning(large, 10_000)
    assert whole.startswith(text + "\n")
    assert 10_000 <= len(text) + 20 <= 10_000 + 2**15


def test_a_large_file_that_is_no_text_is_refused(tokenizer: Any, large: Path) -> None:
    with large.open("r+b") as file:
        file.write(b"caf\xe9 au lait")
    for read in (lambda: read_documents(tokenizer, large, 10, 1), lambda: beginning(large, 10)):
        with pytest.raises(ValueError, match=r"is not UTF-8.*iconv"):
            read()


def test_every_task_reads_a_large_file_in_parts(
    llama: Any, tokenizer: Any, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(*_: Any, **__: Any) -> str:
        raise AssertionError("the whole file was read")

    monkeypatch.setattr(texts, "load_text", whole)
    monkeypatch.setattr(passkey, "load_text", whole)
    monkeypatch.setattr(suite, "load_text", whole)
    quiet = Console(file=io.StringIO())
    text = {"text": str(large), "console": quiet}
    evaluate(llama, tokenizer, task="ppl", lengths=[32], n_targets=8, out=tmp_path / "a", **text)
    found = evaluate(
        llama,
        tokenizer,
        task="passkey",
        lengths=[500],
        depths=[0.5],
        trials=2,
        haystack="text",
        out=tmp_path / "b",
        **text,
    )
    assert found["settings"]["text"] == "large.txt"
    made = suite.collect(tokenizer, Grid(tasks=["niah_single_2"], lengths=[900], text=str(large)), {900: 1})
    assert ", a line" in next(iter(made.values()))[0].context
