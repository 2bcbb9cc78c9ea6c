"""Prompts of any length for diffusion models that read with CLIP (LongAlign, https://arxiv.org/abs/2410.11817).

pipe(**encode_long_prompt(pipe, prompts, negative_prompts))
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..settings import is_whole
from .encoders import TextEncoder, text_encoders
from .sentences import Splitter, segments

MAX_TOKENS = 240  # the paper's
# `(word:1.3)` and `[word:0.5]`, which user interfaces take as weights
_WEIGHTED = re.compile(r"[(\[][^()\[\]]*:\s*\d*\.?\d+\s*[)\]]")

# P prompts, S segments, T tokens, C channels of all encoders together


@torch.no_grad()
def encode_long_prompt(
    pipeline_or_encoders: Any,
    prompts: str | Sequence[str],
    negative_prompts: str | Sequence[str] | None = None,
    *,
    max_tokens: int | None = MAX_TOKENS,
    truncate: bool = False,
    splitter: Splitter = "sentences",
    merge: bool = False,
    clip_skip: int | None = None,
) -> dict[str, Tensor]:
    """Embeddings that a Stable Diffusion or SDXL pipeline accepts in place of prompts longer than its encoders read.

    Each sentence is encoded by itself. The states of its words, led by that of its start token, are joined in order;
    the states of end tokens are left out. After them every prompt is filled to the same length with one vector, the
    mean of the last 60 states of an empty prompt. Cross-attention has no positions, so a stock UNet accepts it, though
    the paper fine-tunes its own on such prompts. There is no training and no gradient. Weights in a prompt, as in
    `(word:1.3)`, are read as text, with a warning.

    For SDXL both encoders see the same segments and their states are joined by channel; the pooled embedding is the
    mean of the segments'. That mean is this project's choice, after the paper's embeddings of captions: the published
    code reads with Stable Diffusion's encoder alone. `prompt_2` is not supported, since states are joined by token.

    Args:
        pipeline_or_encoders: A pipeline of diffusers with CLIP text encoders (text to image, image to image,
            inpainting, ControlNet, ...), whose textual inversions are applied; or (tokenizer, text_encoder), or a list
            of such pairs, of which SDXL's second has a projection.
        prompts: One or several, of any lengths. An empty one is a start token and filling.
        negative_prompts: One for all, or one for each. By default empty prompts, or zeros if the pipeline's
            `force_zeros_for_empty_prompt` says so, as in SDXL.
        max_tokens: Length of every embedding, the paper's by default. None: the length of the longest prompt.
        truncate: Cut longer prompts, as the published code does.
        splitter: "sentences"; "longalign", the published code's splitting, for models that were trained with it; or a
            function from a text to a list of sentences. A longer sentence than the encoders read is split, not cut.
        merge: Let neighbouring sentences share a segment if they fit, with fewer start tokens.
        clip_skip: As in diffusers: the number of further layers, from the last, to leave out for the prompts, but not
            for the negative prompts.

    Returns:
        `prompt_embeds` and `negative_prompt_embeds`, [P, max_tokens, C]; for SDXL also `pooled_prompt_embeds` and
        `negative_pooled_prompt_embeds`, [P, width of the projection]. In the encoders' dtype, on their device.

    Raises:
        ValueError: Encoders other than CLIP's, tokenizers that do not agree, no prompts, another number of negative
            prompts, or a prompt of more than `max_tokens` without `truncate`.
    """
    encoders = text_encoders(pipeline_or_encoders, clip_skip)
    texts = _texts("prompts", prompts)
    if isinstance(negative_prompts, str) or negative_prompts is None:
        negative = [negative_prompts or ""] * len(texts)
    else:
        negative = _texts("negative_prompts", negative_prompts)
    if len(negative) != len(texts):
        raise ValueError(
            f"{len(negative)} negative prompts for {len(texts)} prompts: expected one for each, or one string for all."
        )
    if max_tokens is not None and not is_whole(max_tokens):
        raise ValueError(
            f"max_tokens={max_tokens!r}: expected a whole number of tokens, the paper's {MAX_TOKENS}, or None for "
            f"the length of the longest prompt."
        )
    if weighted := next((found[0] for text in texts + negative if (found := _WEIGHTED.search(text))), None):
        warnings.warn(f"{weighted!r} in a prompt is read as text: weights are not supported.", stacklevel=3)

    first, limit = encoders[0], min(encoder.length for encoder in encoders) - 2  # start and end token
    parts = [
        segments(_inverted(text, pipeline_or_encoders, first.tokenizer), first.count, limit, splitter, merge=merge)
        for text in texts + negative
    ]
    if clip_skip:  # as in diffusers, for prompts only
        read = _read(encoders, parts[: len(texts)])
        read += _read(text_encoders(pipeline_or_encoders), parts[len(texts) :])
    else:
        read = _read(encoders, parts)
    length = max(len(row) for row, *_ in read) if max_tokens is None else max_tokens
    longest = max(range(len(read)), key=lambda i: len(read[i].states))
    if len(read[longest].states) > length and not truncate:
        which = f"prompt {longest}" if longest < len(texts) else f"negative prompt {longest - len(texts)}"
        raise ValueError(
            f"{which} has {len(read[longest].states)} tokens in {len(parts[longest])} segments, more than max_tokens="
            f"{length}. Give a larger max_tokens, None for the longest prompt's length, or truncate=True to cut it."
        )
    embeds = torch.stack(
        [torch.cat([row.states[:length], row.filling.expand(max(0, length - len(row.states)), -1)]) for row in read]
    )
    out = dict(zip(("prompt_embeds", "negative_prompt_embeds"), embeds.chunk(2), strict=True))
    if pooled := [row.pooled for row in read if row.pooled is not None]:
        names = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        out |= zip(names, torch.stack(pooled).chunk(2), strict=True)
    config = getattr(pipeline_or_encoders, "config", None)
    if negative_prompts is None and getattr(config, "force_zeros_for_empty_prompt", False):
        out |= {name: torch.zeros_like(tensor) for name, tensor in out.items() if name.startswith("negative")}
    return out


class _EncodedPrompt(NamedTuple):
    """A prompt by all encoders: its states, [tokens, C], the vector that fills it, [1, C], and its pooled embedding."""

    states: Tensor
    filling: Tensor
    pooled: Tensor | None


def _read(encoders: list[TextEncoder], parts: list[list[str]]) -> list[_EncodedPrompt]:
    """Prompts that were cut into segments. A segment of several prompts is read once."""
    where = {part: i for i, part in enumerate(dict.fromkeys(part for each in parts for part in each))}
    read = [encoder.encode(list(where)) for encoder in encoders]
    lengths = [[len(states) for states in one.states] for one in read]
    if lengths[0] != lengths[-1]:
        raise ValueError(
            f"the two tokenizers cut the same segments into {lengths[0]} and {lengths[-1]} tokens, so the encoders' "
            f"states cannot be joined. Load textual inversions and added tokens into both."
        )
    states = [_joined([one.states[i] for one in read]) for i in range(len(where))]
    filling, pooled, rows = _joined([one.filling for one in read]), read[-1].pooled, []
    for each in parts:
        at = [where[part] for part in each]
        rows.append(
            _EncodedPrompt(torch.cat([states[i] for i in at]), filling, None if pooled is None else pooled[at].mean(0))
        )
    return rows


def _texts(what: str, given: str | Sequence[str]) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given) if isinstance(given, Sequence) else [given]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{what}={given!r}: expected a string or a list of strings, one at least.")
    return texts


def _inverted(text: str, pipeline: Any, tokenizer: Any) -> str:
    """A textual inversion of several vectors is several words for the tokenizer."""
    if not hasattr(pipeline, "maybe_convert_prompt") or not any(word in text for word in tokenizer.get_added_vocab()):
        return text
    return str(pipeline.maybe_convert_prompt(text, tokenizer))


def _joined(tensors: list[Tensor]) -> Tensor:
    """By channel, on the device and in the dtype of the last: an offloaded encoder leaves its states where it ran."""
    return torch.cat([tensor.to(tensors[-1]) for tensor in tensors], -1)
