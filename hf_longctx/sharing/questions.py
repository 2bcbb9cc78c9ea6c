"""Many questions about one text: it is prefilled once, or loaded from a saved prefix."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..storage.fingerprint import model_digest, tokenizer_digest
from ..text.joins import common, ids_after, ids_before
from ..text.pieces import around, encoded, last_line
from ..text.tokens import bos_prefix, encode, left_pad
from .kept import cached_prefix

BREAK = "\n\n"  # between a text and a question about it


class Prompt:
    """A text and a question about it, in the tokenizer's chat template if it has one, as two lists of ids.

    Joined, they are the ids of the whole prompt tokenised at once. The text is tokenised without the question, as a
    prefix must be: tokens at its end that a question may change belong to the questions.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pieces: Iterable[str]) -> None:
        self.tokenizer = tokenizer
        head, self._tail = around(tokenizer)
        ids = [] if tokenizer.chat_template else bos_prefix(tokenizer)
        last: list[int] = []
        for self._before, self._end, last in encoded(tokenizer, chain([head], pieces)):
            ids += last
        # the last line is tokenised again with every question, and no more than that
        before, end = last_line(self._end)
        near = ids_after(tokenizer, before, end)
        if before and last[-len(near) :] == near:
            self._before, self._end, last = before, end, near
        stays = common(last, ids_before(tokenizer, f"{self._end}{BREAK}", self._before))
        stays = stays or len(last) * (len(ids) == len(last))  # a prefix has one token at least
        self._known, self._rest = last[:stays], last[stays:]
        self.document_ids = torch.tensor(ids[: len(ids) - len(self._rest)])

    def question(self, text: str) -> list[int]:
        """The ids that follow those of the document."""
        text = f"{BREAK}{text}{self._tail}"
        known = encode(self.tokenizer, self._before) + self._known
        whole = encode(self.tokenizer, f"{self._before}{self._end}{text}")
        if whole[: len(known)] == known:
            return whole[len(known) :]
        return self._rest + ids_after(self.tokenizer, "a", text)  # it changes more than is left to it


def answers(
    model: Any,
    prompt: Prompt,
    questions: Sequence[str],
    *,
    batch_size: int = 32,
    prefix_cache: str | Path | None = None,
    chunk: int | None = None,
    **settings: Any,
) -> Iterator[str]:
    """The answers, in the order of the questions, batch by batch.

    Args:
        model: See `shared_prefix`.
        prompt: The document.
        questions: At least one, none of them empty.
        batch_size: Questions that are answered at once.
        prefix_cache: A folder where the prefix is saved for the next time. None: it is not saved.
        chunk: The prefill chunk size, in tokens.
        **settings: For `model.generate`.
    """
    if not questions or not all(question.strip() for question in questions):
        raise ValueError("there is no question, or one of them is empty. Give at least one, and words in each.")
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: expected a number of questions, at least 1.")
    tokenizer = prompt.tokenizer
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    rows = [prompt.question(question) for question in questions]
    with cached_prefix(model, prompt.document_ids, prefix_cache, chunk) as prefix:
        for start in range(0, len(rows), batch_size):
            ids, mask = left_pad(rows[start : start + batch_size], pad)
            out = prefix.generate(ids, attention_mask=mask, pad_token_id=pad, **settings)
            for row in out[:, ids.shape[1] :]:
                yield str(tokenizer.decode(row, skip_special_tokens=True)).strip()


def run_digest(model: Any, tokenizer: Any, prompt: Prompt, settings: Mapping[str, Any]) -> str:
    """A short hash of everything that determines the answers to questions: those of one hash can share a file."""
    what = f"{model_digest(model)} {model.dtype} {tokenizer_digest(tokenizer)} {json.dumps(settings, sort_keys=True)}"
    end = prompt.question("?")  # the text around a question, and the end of the document that it may change
    ids = torch.cat([prompt.document_ids, torch.tensor(end)])
    return hashlib.sha256(what.encode() + ids.numpy().tobytes()).hexdigest()[:16]
