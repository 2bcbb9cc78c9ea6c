"""Ids of text as a model reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def bos_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-text token as a list, or an empty one for a tokenizer that doesn't add it by itself."""
    ids = list(tokenizer("x")["input_ids"])
    return ids[:1] if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else []
