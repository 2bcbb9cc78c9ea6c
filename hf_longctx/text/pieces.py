"""Texts that are never whole in memory: decoded and tokenised in pieces."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from .joins import ids_after, ids_before
from .tokens import bos_prefix, encode, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE = 2**15  # characters that are tokenised at once
MARK = "\ue000-hf-longctx-\ue000"  # stands for a text in a chat template; private-use characters are in no text
# tokenizers split between a line's last word and the next line's first, whatever stands around them
_LINE, _WORD = re.compile(r"(?<=\S)\n(?=\S)"), re.compile(r"(?<=\S)(?= \S)")

_AFTER_LINE, _AFTER_WORD = "a\n", "a"  # stand-ins for the text that was cut off there


class CutError(ValueError):
    """A tokenizer makes other tokens of a text's parts than of the text."""


def encode_pieces(
    tokenizer: PreTrainedTokenizerBase, pieces: Iterable[str], *, bos: bool = True, after: str = ""
) -> Iterator[list[int]]:
    """The token ids of the text that `pieces` form, one list for about every 32,000 characters.

    The text is cut between a line and the next where neither is blank. Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM)
    splits there before it merges, and SentencePiece models have no token across such a line end, so the ids are those
    of the text tokenised whole. A line of more than 32,000 characters is cut between two words, and only where it has
    no space either, anywhere: there a token or two may differ.

    Args:
        tokenizer: The model's.
        pieces: The text, cut anywhere.
        bos: Begin with the beginning-of-text token, where the tokenizer adds one by itself. False for a continuation,
            or a chat template that has it.
        after: The text that this one continues, if there is one. Its own ids are those of `joins.ids_before`.
    """
    if bos:
        yield bos_prefix(tokenizer)
    for _, _, ids in encoded(tokenizer, pieces, after):
        yield ids


def encoded(
    tokenizer: PreTrainedTokenizerBase, pieces: Iterable[str], after: str = ""
) -> Iterator[tuple[str, str, list[int]]]:
    """The parts in which `encode_pieces` tokenises a text: a stand-in for the text before each, the text, its ids."""
    for number, (before, text) in enumerate(_cut(pieces)):
        if number == 0:
            yield after, text, ids_after(tokenizer, after, text, ids_before(tokenizer, after))
            continue
        if before not in (_AFTER_LINE, _AFTER_WORD):
            yield before, text, ids_after(tokenizer, before, text)
            continue
        # after a stand-in for the text that was cut off: else some tokenizers add a space, as at a text's beginning
        known, ids = encode(tokenizer, before), encode(tokenizer, before + text)
        if ids[: len(known)] != known:
            raise CutError(
                f"{type(tokenizer).__name__}: {before!r} and {text[:20]!r}... share a token of this tokenizer, so a "
                f"text cannot be tokenised in pieces. Tokenise it whole and stream the ids."
            )
        yield before, text, ids[len(known) :]


def lines_of(text: str) -> list[str]:
    """Lines end at a line feed, with or without a carriage return before it.

    `str.splitlines` cuts at eight more characters (U+2028, U+0085, form feed ...), which texts have inside their lines.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def last_line(text: str) -> tuple[str, str]:
    """The last line that is tokenised as if alone, and a stand-in for the text before it, "" if there is none."""
    at = max((match.start() + 1 for match in _LINE.finditer(text)), default=0)
    return (_AFTER_LINE if at else ""), text[at:]


def with_question(tokenizer: PreTrainedTokenizerBase, pieces: Iterable[str], question: str) -> Iterator[str]:
    """A document and a question about it as one prompt, in the tokenizer's chat template if it has one."""
    before, after = around(tokenizer, f"\n\n{question}")
    return chain([before], pieces, [after])


def around(tokenizer: PreTrainedTokenizerBase, tail: str = "") -> tuple[str, str]:
    """A prompt's text before and after a document in a user's turn that ends with `tail`; ("", `tail`) untemplated."""
    if not tokenizer.chat_template:
        return "", tail
    before, found, after = render(tokenizer, [{"role": "user", "content": f"{MARK}{tail}"}]).partition(MARK)
    if not found:
        raise ValueError("the chat template leaves the user's text out, so a document cannot be put there.")
    return before, after


def _cut(pieces: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The text in parts that can be tokenised alone, each with a stand-in for the text before it."""
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
            before, text = _AFTER_LINE if line else _AFTER_WORD if word else text[at - 8 : at], text[at:]
    if text:
        yield before, text


def _last(pattern: re.Pattern[str], text: str) -> int:
    """Where `pattern` last matches in the first part of `text`; 0 for nowhere."""
    return max((match.start() for match in pattern.finditer(text, 0, 2 * PIECE)), default=0)


def _decoded(file: Any, name: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    at, carriage = 0, ""
    while True:
        data = file.read(PIECE)
        if b"\0" in data:
            raise ValueError(f"{name} holds zero bytes, so it is not plain text. Convert it to UTF-8 text first.")
        try:
            text = carriage + decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name} is not UTF-8 somewhere from byte {at} on ({error.reason}). Convert it first, for example with "
                f"`iconv -f latin1 -t utf-8`."
            ) from error
        at += len(data)
        carriage = "\r" if text.endswith("\r") and data else ""  # its line feed may be in the next piece
        yield text.removesuffix(carriage).replace("\r\n", "\n")
        if not data:
            return
