"""Greedy answers to many prompts, in batches."""

# B batch, L prompt length
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..cache.recurrent import lost_between_pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FEW = 4  # prompts of one length that are worth a batch of their own


def greedy(
    model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, prefill_chunk_size: int | None = None
) -> Any:
    """A GenerationConfig for greedy decoding, whatever a chat checkpoint's own settings are.

    Raises:
        ValueError: The model cannot read a prompt in chunks.
    """
    from transformers import GenerationConfig

    lost = None if prefill_chunk_size is None else lost_between_pieces(model, prefill_chunk_size)
    if lost is not None:
        raise ValueError(
            f"{type(model).__name__} cannot read a prompt in chunks of {prefill_chunk_size} tokens, since {lost}. "
            "Leave out the limit on the tokens of a forward pass."
        )
    end = model.generation_config.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (end[0] if isinstance(end, list) else end)
    # the model's own settings, such as a chat checkpoint's sampling, would fill what is left out here
    plain = {"num_beams": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0}
    own = {"eos_token_id": end, "pad_token_id": pad, "prefill_chunk_size": prefill_chunk_size}
    return GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, **plain, **own)


def answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int] | Tensor],
    max_new_tokens: int,
    *,
    prefill_tokens: int | None = None,
    **generate: Any,
) -> list[str]:
    """The text that the model writes after each prompt, without special tokens.

    Args:
        model: A causal language model in eval mode, stock or patched.
        tokenizer: Its tokenizer.
        prompts: Token ids; shorter ones are padded on the left, and a batch of equal ones has no padding at all, which
            the fastest kernels need.
        max_new_tokens: Tokens written at most; a row ends at the end-of-text token.
        prefill_tokens: Tokens of the whole batch that one forward pass reads; None: the prompts in one piece.
        **generate: Further arguments of `model.generate`.
    """
    width = max(map(len, prompts))
    config = greedy(model, tokenizer, max_new_tokens, _chunk(prefill_tokens, len(prompts), width))
    ids_BL = torch.full((len(prompts), width), config.pad_token_id or 0)
    mask_BL = torch.zeros_like(ids_BL)
    for row, ids in enumerate(prompts):
        ids_BL[row, width - len(ids) :] = torch.as_tensor(ids)
        mask_BL[row, width - len(ids) :] = 1
    mask_BL = mask_BL.to(model.device)
    output = model.generate(ids_BL.to(model.device), attention_mask=mask_BL, generation_config=config, **generate)
    return [str(text) for text in tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)]


def batches(lengths: Sequence[int], most: int, rows: int | None = None) -> Iterator[list[int]]:
    """Indexes of prompts in batches of at most `most` tokens, padding included, and `rows` prompts, the longest first.

    Prompts of one length share batches without padding; those of which there are few are put together by length.
    """
    limit = len(lengths) if rows is None else rows
    by_length: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        by_length.setdefault(length, []).append(i)
    rest: list[int] = []
    for length in sorted(by_length, reverse=True):
        some, size = by_length[length], max(1, min(limit, most // length))
        if len(some) < min(_FEW, size):
            rest += some
            continue
        # evenly: a last batch of one row takes as many steps as a full one
        parts = -(-len(some) // size)
        yield from (some[len(some) * p // parts : len(some) * (p + 1) // parts] for p in range(parts))
    while rest:
        size = max(1, min(limit, most // lengths[rest[0]]))
        yield rest[:size]
        rest = rest[size:]


def _chunk(prefill_tokens: int | None, rows: int, width: int) -> int | None:
    if prefill_tokens is None or prefill_tokens >= rows * width:
        return None
    # whole blocks of the kernels' tiles
    return max(256, prefill_tokens // rows // 256 * 256)
