"""Where a prompt's head, its text and its question are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...text.joins import ids_after, ids_before
from ...text.pieces import MARK, around
from ...text.tokens import bos_prefix, render

SPACES = 4  # tokens, at most, of white space before a question that belong to it


class NotInPrompt(ValueError):
    """The question or the head is not in the prompt, or does not fit it: it can be read only as a whole."""


class Parts(NamedTuple):
    """A prompt cut into three: `head` before the text, the `text` itself, the `question` after it."""

    head: list[int]
    text: Tensor
    question: list[int]


def split(
    ids_L: Tensor,
    *,
    question: int | str | Sequence[int] | Tensor | None,
    head: int | None,
    tokenizer: PreTrainedTokenizerBase | None,
    bos: int | None,
    window: int,
    tail: int,
    whole: bool = False,
) -> Parts:
    """Cut one prompt, given as a 1-D tensor of ids.

    `question`, `head` and `tokenizer` are those of `XL3M.__call__`; white space before the words of a question belongs
    to it. `bos` is the beginning-of-text token, `window` what the model can read, and `tail` the tokens of a question
    of which nothing is known. A prompt that is read `whole` needs no cut: its chat template is not looked at, and where
    a question cannot be found, all of it is text.

    Raises:
        NotInPrompt: The question is not in the prompt, or head and question overlap, and it is not read whole.
        ValueError: One of them is none that a prompt could have.
    """
    templated = None if whole else tokenizer
    try:
        at = len(ids_L) - _question_length(
            ids_L, question, tokenizer if isinstance(question, str) else templated, window, tail
        )
        return _cut(ids_L, at, head, templated, bos, window)
    except NotInPrompt:
        if not whole:
            raise
        return Parts([], ids_L, [])


def _cut(
    ids_L: Tensor, at: int, head: int | None, tokenizer: PreTrainedTokenizerBase | None, bos: int | None, window: int
) -> Parts:
    """Cut before the question, which begins `at` a token."""
    first = _head_length(ids_L, tokenizer, bos, window) if head is None else _length("head", head, len(ids_L))
    if head is None:
        first = min(first, at)
    if first > at:
        raise NotInPrompt(
            f"head={head}: the question begins at token {at:,} of {len(ids_L):,}, so head and question overlap."
        )
    return Parts(ids_L[:first].tolist(), ids_L[first:at], ids_L[at:].tolist())


def around_text(tokenizer: PreTrainedTokenizerBase, question: str) -> tuple[list[int], list[int]]:
    """Head and question for a text that comes from elsewhere, in the tokenizer's chat template if it has one.

    With the text's own ids between them (`encode_pieces(..., bos=False, after=text_before(tokenizer, head))`) they are
    those of the whole prompt, except for a token that the text's last word and the line end after it may share.
    """
    before, after = around(tokenizer, f"\n\n{question}")
    head = ids_before(tokenizer, before) if tokenizer.chat_template else bos_prefix(tokenizer)
    return head, ids_after(tokenizer, "a", after)


def text_before(tokenizer: PreTrainedTokenizerBase, head: Sequence[int]) -> str:
    """The text of a prompt's head, which a document continues; "" if the head is no more than its first token."""
    if tokenizer.chat_template:
        usual = around(tokenizer)[0]
        if ids_before(tokenizer, usual) == list(head):
            return usual
    if all(token == tokenizer.bos_token_id for token in head):
        return ""
    return str(tokenizer.decode(list(head)[-16:], skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _question_length(
    ids_L: Tensor,
    question: int | str | Sequence[int] | Tensor | None,
    tokenizer: PreTrainedTokenizerBase | None,
    window: int,
    tail: int,
) -> int:
    if question is None:
        marker = torch.tensor(_marker(tokenizer), dtype=torch.long, device=ids_L.device)
        end_L = ids_L[-(window // 2) :]
        start = _last(end_L, marker)  # of the user's last turn, if it begins in there
        return min(tail, len(ids_L)) if start is None else len(end_L) - start
    if isinstance(question, bool) or (isinstance(question, int) and question < 1):
        raise ValueError(f"question={question}: expected at least 1 token at the end of the prompt.")
    if isinstance(question, int):
        return _length("question", question, len(ids_L))
    if isinstance(question, str):
        return _words(ids_L, question, tokenizer, window)
    if isinstance(question, float):
        raise ValueError(f"question={question}: expected a whole number of tokens, words or ids.")
    wanted = torch.as_tensor(question, dtype=torch.long, device=ids_L.device).flatten()
    start = _last(ids_L, wanted)
    if start is None:
        raise NotInPrompt(
            f"question: these {len(wanted):,} ids are not in the prompt. Give the ids as they stand there, or how many "
            f"tokens at its end are the question."
        )
    return len(ids_L) - start


def _length(name: str, value: int, most: int) -> int:
    number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not number or value > most:
        wrong = NotInPrompt if number else ValueError
        raise wrong(f"{name}={value!r}: expected a number of tokens, 0 to the prompt's {most:,}.")
    return value


def _words(ids_L: Tensor, words: str, tokenizer: PreTrainedTokenizerBase | None, window: int) -> int:
    if tokenizer is None:
        raise ValueError("question is given in words, which needs the tokenizer: generate(..., tokenizer=tokenizer).")
    if not words.strip():
        raise ValueError("question is empty. Give its words, its ids, or how many tokens at the prompt's end it has.")
    end = ids_L[-window:].tolist()

    def lost(start: int) -> bool:
        return words.strip() not in tokenizer.decode(end[start:], clean_up_tokenization_spaces=False)

    if lost(0):
        raise NotInPrompt(
            f"question={words[:60]!r} is not in the last {len(end):,} tokens of the prompt. Give it as it stands there."
        )
    # the last place at which all of the words are still ahead
    start = bisect_right(range(len(end)), False, key=lost) - 1
    # the empty line before them keeps them apart from the segment that comes to stand there
    for _ in range(SPACES):
        if start and not tokenizer.decode(end[start - 1 : start], clean_up_tokenization_spaces=False).strip():
            start -= 1
    return len(end) - start


def _head_length(ids_L: Tensor, tokenizer: PreTrainedTokenizerBase | None, bos: int | None, window: int) -> int:
    begins = ids_L[: window // 2]
    if tokenizer is not None and tokenizer.chat_template:
        usual = ids_before(tokenizer, around(tokenizer)[0])
        if begins[: len(usual)].tolist() == usual:
            return len(usual)
        marker = torch.tensor(_marker(tokenizer), dtype=torch.long, device=ids_L.device)
        places = _places(begins, marker)
        if len(places):
            return int(places[0]) + len(marker)
    return int(bos is not None and len(ids_L) > 0 and int(ids_L[0]) == bos)


def _marker(tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """What stands between a turn of the assistant and the words of the user's next one; [] where nothing does."""
    if tokenizer is None or not tokenizer.chat_template:
        return []
    before = f"{MARK}a"
    chat = [{"role": role, "content": text} for role, text in (("user", "q"), ("assistant", before), ("user", MARK))]
    text = render(tokenizer, chat)
    return ids_before(tokenizer, text[text.find(before) + len(before) : text.rfind(MARK)], after="a")


def _last(ids_L: Tensor, wanted_W: Tensor) -> int | None:
    places = _places(ids_L, wanted_W)
    return int(places[-1]) if len(places) else None


def _places(ids_L: Tensor, wanted_W: Tensor) -> Tensor:
    if not 0 < len(wanted_W) <= len(ids_L):
        return torch.empty(0, dtype=torch.long)
    return (ids_L.unfold(0, len(wanted_W), 1) == wanted_W).all(-1).nonzero()[:, 0]
