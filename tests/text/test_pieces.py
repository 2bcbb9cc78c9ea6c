"""Texts in pieces: read, tokenised and written, they equal the whole."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import hf_longctx.text.pieces as text_stream
from hf_longctx.text import encode_pieces, read_pieces, with_question, written
from hf_longctx.text.corpora import load_text
from tests import tiny
from tests.tokenizer_kinds import HARD, byte_level, documents, sentence_piece

TOKENIZERS: dict[str, Any] = {
    "gpt2": byte_level,
    "digits": lambda: byte_level("digits"),
    "llama3": lambda: byte_level("llama3"),
    "sentencepiece": sentence_piece,
}


def cut_anywhere(text: str) -> Iterator[str]:
    rng, at = random.Random(0), 0
    while at < len(text):
        step = rng.randrange(1, 900)
        yield text[at : at + step]
        at += step


@pytest.mark.parametrize("size", [200, 5_000, 2**15])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_are_tokenised_as_the_whole(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, text = TOKENIZERS[name](), documents()
    monkeypatch.setattr(text_stream, "PIECE", size)
    whole = tokenizer(text, verbose=False)["input_ids"]
    lists = list(encode_pieces(tokenizer, cut_anywhere(text)))
    assert len(lists) > len(text) / size / 2
    assert [i for ids in lists for i in ids] == whole


@pytest.mark.real_model
@pytest.mark.parametrize("size", [300, 2**15])
def test_pieces_are_tokenised_as_the_whole_by_smollm2(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_longctx.hub import locate

    try:
        tokenizer = AutoTokenizer.from_pretrained(locate("smollm2-135m-instruct").location)
    except OSError as error:
        pytest.skip(f"the model cannot be had: {error}")
    monkeypatch.setattr(text_stream, "PIECE", size)
    text = load_text("python-docs") + HARD
    whole = tokenizer(text, verbose=False)["input_ids"]
    assert [i for ids in encode_pieces(tokenizer, cut_anywhere(text)) for i in ids] == whole
    assert "".join(written(tokenizer, whole[-5_000:])) == tokenizer.decode(whole[-5_000:])


def test_line_without_an_end_is_cut_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level()
    monkeypatch.setattr(text_stream, "PIECE", 100)
    for text in ("word " * 1_000, "x" * 5_000, "x" * 700 + "\n" + "word, " * 300):
        lists = list(encode_pieces(tokenizer, cut_anywhere(text)))
        assert max(map(len, lists)) <= 400
        assert tokenizer.decode([i for ids in lists for i in ids]) == text


def test_tokenizer_that_joins_lines_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Tokenizer(models.BPE({"a": 0, "\n": 1, "b": 2, "\nb": 3}, [("\n", "b")]))
    monkeypatch.setattr(text_stream, "PIECE", 10)
    with pytest.raises(ValueError, match="cannot be tokenised in pieces"):
        list(encode_pieces(PreTrainedTokenizerFast(tokenizer_object=inner), ["ba\n" * 20], bos=False))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_that_comes_token_by_token_is_the_whole(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer("x " + HARD[:800] + " 😀👩‍👩‍👧 end", add_special_tokens=False)["input_ids"]
    assert "".join(written(tokenizer, iter(ids))) == tokenizer.decode(ids)


def test_character_comes_whole_and_broken_ones_come_at_the_end() -> None:
    tokenizer = byte_level()
    ids = tokenizer("a😀b")["input_ids"]
    assert len(ids) > 3
    assert list(written(tokenizer, ids)) == ["a", "😀", "b"]
    assert "".join(written(tokenizer, ids[:-2])) == tokenizer.decode(ids[:-2])
    assert len(list(written(tokenizer, ids[1:2] * 100))) > 10  # not held back indefinitely


def test_words_of_a_plain_tokenizer_are_spaced() -> None:
    tokenizer = tiny.tokenizer()
    assert "".join(written(tokenizer, [5, 6, 2, 7])) == tokenizer.decode([5, 6, 2, 7], skip_special_tokens=True)


def test_file_is_read_in_pieces_as_the_text_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_stream, "PIECE", 7)
    file = tmp_path / "text.txt"
    text = " \n" + HARD[:900].replace("\n", "\r\n") + " lone\rreturn  \n\n"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    pieces = list(read_pieces(file))
    assert len(pieces) > 50
    assert "".join(pieces) == load_text(file).strip()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    assert "".join(read_pieces("-")) == "".join(pieces)
    assert "".join(read_pieces("python-docs")) == load_text("python-docs")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\0b", "zero bytes"),
        (b"a \xe9t\xe9", "is not UTF-8 somewhere from byte 0"),
        (b" \n ", "is empty"),
        (b"", "is empty"),
    ],
)
def test_file_that_is_no_text_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_pieces(tmp_path / "x")


def test_missing_file_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No text file at"):
        read_pieces(tmp_path / "x")
    with pytest.raises(ValueError, match="is a folder"):
        read_pieces(tmp_path)


def test_document_and_question_are_the_prompt_that_a_chat_template_makes() -> None:
    tokenizer = byte_level()
    assert "".join(with_question(tokenizer, ["some ", "text"], "why?")) == "some text\n\nwhy?"
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}"
        "{% if add_generation_prompt %}<bot>{% endif %}"
    )
    chat = [{"role": "user", "content": "some text\n\nwhy?"}]
    whole = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert "".join(with_question(tokenizer, ["some ", "text"], "why?")) == whole
    tokenizer.chat_template = "nothing"
    with pytest.raises(ValueError, match="leaves the user's text out"):
        with_question(tokenizer, ["x"], "why?")
