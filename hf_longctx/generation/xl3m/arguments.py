"""What `generate` hands to a decoding method, row by row as the caller gave it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...text.files import read_pieces
from ...text.pieces import encode_pieces
from ...upstream.caches import cache_in
from .decoding import repeats
from .prompt import text_before


def prompts(prompt_BL: Tensor, model_kwargs: dict[str, Any], generation_config: Any) -> list[Tensor]:
    """Each prompt once and without its padding."""
    if "inputs_embeds" in model_kwargs:
        raise ValueError("inputs_embeds: segments are cut from token ids. Pass input_ids.")
    each, mask = repeats(generation_config), model_kwargs.get("attention_mask")
    if mask is None:
        return list(prompt_BL[::each])
    return [row[kept.to(row.device).bool()] for row, kept in zip(prompt_BL[::each], mask[::each], strict=True)]


def refuse_filled_cache(model_kwargs: dict[str, Any]) -> None:
    """ValueError for a cache that holds tokens, which a prompt that is cut cannot follow."""
    cache = cache_in(model_kwargs)
    if cache is not None and cache.get_seq_length():
        raise ValueError(
            f"the cache holds {cache.get_seq_length():,} tokens, and segments are read on their own, not after "
            f"others: pass the whole prompt without a cache."
        )


def per_row(question: Any, rows: int) -> list[Any]:
    """One question per row: the same for all, unless there is a list with one for each."""
    several = isinstance(question, list | tuple) and not all(type(part) is int for part in question)
    if several and len(question) != rows:
        raise ValueError(f"question: {len(question)} questions for {rows} prompts. Give one, or one for each.")
    return list(question) if several else [question] * rows


def files(scores_file: str | Path | None, rows: int) -> list[Path | None]:
    """One file of scores per row."""
    if scores_file is None:
        return [None] * rows
    path = Path(scores_file).expanduser()
    return [path] if rows == 1 else [path.with_name(f"{path.name}.row-{i}") for i in range(rows)]


def opened(
    document: Iterable[Any] | Path | None, tokenizer: PreTrainedTokenizerBase | None, head: Sequence[int] = ()
) -> Iterable[Sequence[int]] | Any:
    """Token ids of a document that stands after `head`: those of a file come as it is read."""
    if isinstance(document, str):
        raise ValueError(
            f"document={document[:60]!r} is a str. Name a file by its Path, document=Path(...), or give token ids: "
            f"tokenizer(text)['input_ids']."
        )
    if not isinstance(document, Path):
        return document
    if tokenizer is None:
        raise ValueError(
            f"document={str(document)!r} is a file, which needs the tokenizer: generate(..., tokenizer=...)."
        )
    return encode_pieces(tokenizer, read_pieces(document), bos=False, after=text_before(tokenizer, head))
