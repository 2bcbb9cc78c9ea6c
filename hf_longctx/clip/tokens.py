"""The tokenizer of a stretched table."""

from __future__ import annotations

from typing import Any

from ..settings import is_whole


def stretch_tokenizer(tokenizer_or_processor: Any, length: int) -> Any:
    """Let a tokenizer, or the one inside a processor, return `length` tokens. In place; returns its argument.

    `truncation=True` and `padding="max_length"` then mean `length`, also after save_pretrained.
    """
    if not is_whole(length):
        raise ValueError(f"length={length!r}: expected a whole number of tokens, the rows of the stretched table.")
    tokenizer = getattr(tokenizer_or_processor, "tokenizer", tokenizer_or_processor)
    if not hasattr(tokenizer, "model_max_length"):
        raise ValueError(
            f"{type(tokenizer_or_processor).__name__}: expected a tokenizer, or a processor with one. Load it with "
            f"AutoTokenizer or AutoProcessor."
        )
    tokenizer.model_max_length = length
    settings = getattr(tokenizer, "init_kwargs", {})
    # Only a setting of its tokenizer overrides a processor's own default (SigLIP 2: 64).
    if "max_length" in settings or has_default_length(type(tokenizer_or_processor)):
        settings["max_length"] = length
        if hasattr(tokenizer, "max_length"):
            tokenizer.max_length = length
    return tokenizer_or_processor


def has_default_length(processor: Any) -> bool:
    """Whether this class of processors cuts text at a length of its own."""
    older = getattr(getattr(processor, "valid_processor_kwargs", None), "_defaults", {}).get("text_kwargs", {})
    return "max_length" in (getattr(processor, "text_kwargs", None) or older)
