from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longctx.evaluation.texts import load_text, tokenize_documents


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
