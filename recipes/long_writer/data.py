"""What is learnt from: problems with right answers, and chats of files, as tokens that fit into the context whole."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from hf_longctx.evaluation.tasks.long_output import Problem, problems, sft_row
from hf_longctx.parallel.model.documents import IGNORED
from hf_longctx.training.packing import chat_documents, read_chats

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("hf_longctx")
ROWS_OF_A_PROCESS = 500  # for fewer it does not pay to start one
SHOWN = 5  # rows that a message names
WORDS = "words"  # the key of a row that says how many words were asked for


@dataclass
class Fitting:
    """Rows that fit into the context, and what became of the others.

    Args:
        context: Tokens of a prompt with its answer, at most.
        rows: Those that fit.
        too_long: Names of those that do not.
    """

    context: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)

    def add(self, row: dict[str, Any], tokens: int, name: str) -> None:
        """A row of so many tokens."""
        if tokens > self.context:
            self.too_long.append(f"{name} ({tokens:,} tokens)")
        else:
            self.rows.append(row)

    def report(self, what: str) -> dict[str, Any]:
        """How many were kept and left out; said in the log. ValueError if none is left."""
        found = {"kept": len(self.rows), "too long": len(self.too_long), "such as": self.too_long[:SHOWN]}
        found["mark"] = self.mark()
        if self.too_long:
            logger.warning("%s", self.said(what))
        if not self.rows:
            why = self.said(what) if self.too_long else "there are none"
            raise ValueError(f"no {what} to learn from: {why}. Give files (chats), problems, or a longer context.")
        return found

    def mark(self) -> str:
        """A short hash of the rows, by which a resumed training knows them."""
        found = hashlib.sha256()
        for row in self.rows:
            for name, value in row.items():
                found.update(name.encode())
                # tens of millions of token ids take a while as text
                found.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        return found.hexdigest()[:16]

    def said(self, what: str) -> str:
        """Which were left out."""
        more = ", ..." if len(self.too_long) > SHOWN else ""
        return (
            f"{len(self.too_long)} {what} are longer than the context of {self.context:,} tokens and were left out: "
            f"{', '.join(self.too_long[:SHOWN])}{more}"
        )


def made(config: dict[str, Any], n: int, tokens: Any = None, *, seed: int = 0) -> list[Problem]:
    """`n` problems for training, of the config's tasks; none for 0."""
    tasks = config["tasks"]
    if n == 0:
        return []
    least, most = tasks["tokens"] if tokens is None else tokens
    return list(problems(tasks["names"], (least, most), n, seed=config["seed"] + seed))


def chats(files: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of files of chats, each with its name for messages."""
    for file in files:
        for number, row in enumerate(read_chats(file), 1):
            yield f"{Path(file).name}, chat {number}", row


def asked(files: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Those rows that say how many words were asked for; ValueError for a number that is none."""
    for name, row in chats(files):
        words = row.get(WORDS)
        if words is None:
            continue
        if isinstance(words, bool) or not isinstance(words, int) or words < 1:
            raise ValueError(f"{name}: {WORDS} is {words!r}: expected a whole number of words, at least 1.")
        yield name, row


class Tokenised(Dataset[dict[str, Any]]):
    """Chats as arrays of token ids, one at a time, so that several processes can do it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, named: Sequence[tuple[str, dict[str, Any]]]) -> None:
        self.tokenizer, self.named = tokenizer, named

    def __len__(self) -> int:
        return len(self.named)

    def __getitem__(self, number: int) -> dict[str, Any]:
        name, row = self.named[number]
        try:
            (document,) = chat_documents(self.tokenizer, [row])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        # lists of numbers would take longer from process to process than to be made
        return {key: np.asarray(value, dtype=np.int32) for key, value in document.items()}


def sft_documents(tokenizer: PreTrainedTokenizerBase, config: dict[str, Any]) -> Fitting:
    """Problems and chats as token ids whose targets are the answers, each through its end token."""
    found = Fitting(config["context"])
    named = [
        (f"{one.task}, problem {i}", sft_row(one)) for i, one in enumerate(made(config, config["sft"]["problems"]))
    ]
    named += chats(config["chats"])
    workers = min(os.cpu_count() or 1, 16, len(named) // ROWS_OF_A_PROCESS)
    loader = DataLoader(Tokenised(tokenizer, named), batch_size=32, num_workers=workers, collate_fn=list)
    documents = (document for batch in loader for document in batch)
    for (name, _), document in zip(named, documents, strict=True):
        found.add(document, len(document["input_ids"]), name)
    return found


def parts(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The token ids of a chat before its last answer, and of that answer through its end token."""
    (document,) = chat_documents(tokenizer, [row])
    ids, labels = document["input_ids"], document["labels"]
    end = max(at for at, label in enumerate(labels) if label != IGNORED) + 1
    start = end
    while labels[start - 1] != IGNORED:
        start -= 1
    return ids[:start], ids[start:end]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> list[int]:
    """The token ids of a prompt, ready to be answered."""
    (ids,) = prompts_ids(tokenizer, [messages])
    return ids


def prompts_ids(tokenizer: PreTrainedTokenizerBase, chats: Iterable[list[dict[str, Any]]]) -> list[list[int]]:
    """Those of many prompts, tokenised on all cores."""
    return texts_ids(
        tokenizer,
        [str(tokenizer.apply_chat_template(one, add_generation_prompt=True, tokenize=False)) for one in chats],
    )


def texts_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The token ids of texts alone, tokenised on all cores."""
    if not texts:
        return []
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
