"""Chats as documents whose targets are the assistant's answers, each through the token that ends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ...parallel.model.documents import IGNORED
from .answers import answers_of
from .ends import special_ids, through_ends
from .jsonl import checked_messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def chat_documents(tokenizer: PreTrainedTokenizerBase, chats: Iterable[Any]) -> Iterator[dict[str, list[int]]]:
    """Rows of input_ids and labels, of chats in the tokenizer's template: the answers of the assistant are targets.

    Answers are found by the template's own marks (`{% generation %}`) or, without them, by what the template adds for
    each. The special token that ends an answer is a target even where it is the padding token too: by it a model
    learns to stop.

    Args:
        tokenizer: The model's, with a chat template.
        chats: Rows with messages, as `read_chats` and `datasets.Dataset` give them.

    Raises:
        ValueError: A row is no chat, the template does not end answers with a special token, or it changes earlier
            messages when others follow, and does not mark answers.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"{type(tokenizer).__name__} has no chat template. Set tokenizer.chat_template, or tokenise the chats "
            f"yourself and give input_ids and labels."
        )
    special = special_ids(tokenizer)
    for number, row in enumerate(chats):
        where = f"chat {number}"
        ids, answers = answers_of(tokenizer, checked_messages(row, where), where)
        targets = through_ends(tokenizer, ids, answers, special, where)
        labels = [token if target else IGNORED for token, target in zip(ids, targets, strict=True)]
        yield {"input_ids": ids, "labels": labels}
