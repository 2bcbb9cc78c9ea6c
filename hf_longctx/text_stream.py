"""Texts that are never whole in memory: read from a file in pieces, tokenised in pieces, written out token by token."""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE = 2**15  # characters that are tokenised at once
MARK = "\ue000-hf-longctx-\ue000"  # stands for a text in a chat template; private-use characters are in no text
# tokenizers split between a line's last word and the next line's first, whatever stands before and behind
_LINE, _WORD = re.compile(r"(?<=\S)\n(?=\S)"), re.compile(r"(?<=\S)(?= \S)")


class CutError(ValueError):
    """A tokenizer makes other tokens of a text's parts than of the text."""


def read_pieces(path_or_name: str | Path) -> Iterator[str]:
    """A UTF-8 text in pieces: a file, `-` for standard input, or `python-docs` as in `evaluation.texts.load_text`.

    White space at both ends is left out. FileNotFoundError and ValueError as in `load_text`; a file that is empty or
    no text is refused at once, what is wrong further on is found when it is read.
    """
    if path_or_name == "python-docs":
        from .evaluation.texts import load_text

        return iter([load_text(path_or_name)])
    if str(path_or_name) == "-":
        return _stripped(_decoded(sys.stdin.buffer, "standard input"), "standard input")
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give one text file, '-' for standard input, or 'python-docs'.")
    if not path.exists():
        raise FileNotFoundError(f"No text file at {path}. Give a UTF-8 file, '-' for standard input, or 'python-docs'.")
    pieces = _stripped(_from_file(path), str(path))
    if not path.is_file():  # a pipe may not have been written to yet
        return pieces
    return chain([next(pieces)], pieces)


def encode_pieces(
    tokenizer: PreTrainedTokenizerBase, pieces: Iterable[str], *, bos: bool = True
) -> Iterator[list[int]]:
    """The token ids of the text that `pieces` make up, a list for about every 32,000 characters.

    The text is cut between a line and the next where neither is blank. Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM)
    splits there before it merges, and SentencePiece models have no token across such a line end, so the ids are those
    of the text tokenised whole. A line of more than 32,000 characters is cut between two words, and only where it has
    no space either, anywhere: there a token or two may differ.

    Args:
        tokenizer: The model's.
        pieces: The text, cut anywhere.
        bos: Begin with the beginning-of-text token, where the tokenizer adds one by itself. False for a text that goes
            on, or a chat template that has it.
    """
    if bos:
        from .evaluation.passkey import bos_prefix

        yield bos_prefix(tokenizer)
    for before, text in _cut(pieces):
        # behind a stand-in for what was cut off, else some tokenizers take it for a beginning and put a space there
        known, ids = _ids(tokenizer, before), _ids(tokenizer, before + text)
        if ids[: len(known)] != known:
            raise CutError(
                f"{type(tokenizer).__name__}: {before!r} and {text[:20]!r}... share a token of this tokenizer, so a "
                f"text cannot be tokenised in pieces. Tokenise it whole and stream the ids."
            )
        yield ids[len(known) :]


def with_question(tokenizer: PreTrainedTokenizerBase, pieces: Iterable[str], question: str) -> Iterator[str]:
    """A document and a question about it as one prompt, in the tokenizer's chat template if it has one."""
    head, tail = around(tokenizer, f"\n\n{question}")
    return chain([head], pieces, [tail])


def around(tokenizer: PreTrainedTokenizerBase, tail: str = "") -> tuple[str, str]:
    """What stands before and behind a text in a turn of the user that ends with `tail`; no more without a template."""
    if not tokenizer.chat_template:
        return "", tail
    head, found, rest = render(tokenizer, [{"role": "user", "content": f"{MARK}{tail}"}]).partition(MARK)
    if not found:
        raise ValueError("the chat template leaves the user's text out, so a document cannot be put there.")
    return head, rest


def render(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> str:
    """A chat as the text that the model goes on from."""
    text: Any = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return str(text)


class Detokenizer:
    """Text from tokens as they come; looks back a few tokens only. A character of several tokens comes when whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0  # of these ids, which are kept because what follows may be spaced by them

    def add(self, token: int) -> str:
        """The text that this token completes, perhaps none."""
        self._ids.append(token)
        before, text = self._decode(self._ids[: self._shown]), self._decode(self._ids)
        waiting = len(self._ids) - self._shown
        # a lone part of a character; four bytes are the longest, and what is no character at all must come out too
        if text.endswith("\ufffd") and waiting < 4:
            return ""
        # a special token has no text, and is no context for the next one's
        if text == before and waiting < 16:
            return ""
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return text[len(before) :]

    def end(self) -> str:
        """What is left, if the last character never became whole."""
        text = self._decode(self._ids)[len(self._decode(self._ids[: self._shown])) :]
        self._ids, self._shown = [], 0
        return text

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def written(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int]) -> Iterator[str]:
    """The text of `tokens`, piece by piece as they come."""
    detokenizer = Detokenizer(tokenizer)
    for token in tokens:
        text = detokenizer.add(token)
        if text:
            yield text
    rest = detokenizer.end()
    if rest:
        yield rest


def _cut(pieces: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The text in parts that can be tokenised alone, each with a stand-in for what it follows."""
    text = before = ""
    for more in pieces:
        text += more
        while len(text) > PIECE:
            line = _last(_LINE, text)
            word = 0 if line or len(text) <= 2 * PIECE else _last(_WORD, text)
            if not line and not word and len(text) <= 4 * PIECE:
                break  # one long line: wait for its end
            at = line + 1 if line else word or PIECE
            yield before, text[:at]
            before, text = "a\n" if line else "a" if word else "", text[at:]
    if text:
        yield before, text


def _last(pattern: re.Pattern[str], text: str) -> int:
    """Where `pattern` is last in the first part of `text`; 0: nowhere."""
    return max((match.start() for match in pattern.finditer(text, 0, 2 * PIECE)), default=0)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _from_file(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        yield from _decoded(file, str(path))


def _decoded(file: Any, name: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    at, carriage = 0, ""
    while True:
        data = file.read(PIECE)
        if b"\0" in data:
            raise ValueError(f"{name} holds zero bytes, so it isn't plain text. Convert it to UTF-8 text first.")
        try:
            text = carriage + decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name} isn't UTF-8 somewhere from byte {at} on ({error.reason}). Convert it first, for example with "
                f"`iconv -f latin1 -t utf-8`."
            ) from error
        at += len(data)
        carriage = "\r" if text.endswith("\r") and data else ""  # its line feed may be in the next piece
        yield text.removesuffix(carriage).replace("\r\n", "\n")
        if not data:
            return


def _stripped(pieces: Iterable[str], name: str) -> Iterator[str]:
    """`pieces` without the white space at both ends; ValueError if nothing is left."""
    held, begun = "", False
    for piece in pieces:
        text = held + piece
        text = text if begun else text.lstrip()
        rest = text.rstrip()
        if rest:
            begun = True
            yield rest
        held = text[len(rest) :]
    if not begun:
        raise ValueError(f"{name} is empty. Give a file with text in it, or 'python-docs'.")
