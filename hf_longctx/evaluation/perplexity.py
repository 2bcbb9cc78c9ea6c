"""Perplexity of texts longer than one forward pass can hold.

A text is read through the model's own KV cache in chunks, and logits exist only for the piece being scored. So memory
is the cache plus `score_chunk * V` floats; on a model whose cache is bounded it does not grow with the text. A model
that cannot continue from its cache (Jamba's recurrent layers start again with every chunk) reads the text at once.
"""

# B batch, L text length, N targets, P tokens of a piece, V vocabulary
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cache.recurrent import lost_between_pieces, takes_positions
from ..upstream.caches import cache_out, given_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[int], None]


@torch.no_grad()
def read(
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    n_targets: int,
    chunk: int = 4096,
    score_chunk: int = 1024,
    progress: Progress | None = None,
) -> Tensor:
    """Negative log-likelihood of the last tokens of a text, each given everything before it.

    Args:
        model: A causal language model in eval mode, stock or patched. It makes its own cache.
        input_ids: (B, L) token ids without padding. They may stay on the host: each chunk is moved when it is read.
        n_targets: How many tokens at the end are scored, 1 to L - 1 (the first token has nothing before it).
        chunk: Tokens a forward pass reads while nothing is scored.
        score_chunk: Tokens a forward pass reads while its logits are kept.
        progress: Called after each forward pass with the number of tokens it read, B times the piece.

    Returns:
        (B, n_targets) fp32 on the CPU, in nats.

    Raises:
        ValueError: `input_ids` is not (B, L), `n_targets` or a chunk is out of range, the model is in train mode, or it
            returns no cache.
    """
    _check(model, input_ids, n_targets=n_targets, chunk=chunk, score_chunk=score_chunk)
    length = input_ids.shape[1]
    # The token before the first target predicts it; the last token predicts nothing and is never read.
    first = length - n_targets - 1
    cache, nll = None, []
    pieces = list(_pieces(first, length - 1, chunk, score_chunk))
    if len(pieces) > 1 and lost_between_pieces(model, max(stop - start for start, stop in pieces)):
        return _at_once(model, input_ids, n_targets, progress)
    told = takes_positions(model)
    for start, stop in pieces:
        scored = start >= first
        ids_BP = input_ids[:, start:stop].to(model.device)
        place = {"position_ids": torch.arange(start, stop, device=model.device).expand_as(ids_BP)} if told else {}
        given = {**given_cache(model, cache), **place}
        output = model(input_ids=ids_BP, **given, use_cache=True, logits_to_keep=0 if scored else 1)
        cache = cache_out(output)
        if cache is None:
            raise ValueError(
                f"{type(model).__name__} returned no cache, and reading in chunks needs one. "
                "Use a causal language model with a KV cache."
            )
        if scored:
            nll.append(_nll(output.logits, input_ids[:, start + 1 : stop + 1]))
        # otherwise the piece's logits would stay in memory beside the next piece's
        del output
        if progress is not None:
            progress(ids_BP.numel())
    return torch.cat(nll, dim=1)


def _at_once(model: PreTrainedModel, input_ids: Tensor, n_targets: int, progress: Progress | None) -> Tensor:
    ids_BL = input_ids[:, :-1].to(model.device)
    logits_BNV = model(input_ids=ids_BL, use_cache=False, logits_to_keep=n_targets).logits
    if progress is not None:
        progress(ids_BL.numel())
    return _nll(logits_BNV, input_ids[:, -n_targets:])


def _nll(logits_BPV: Tensor, target_BP: Tensor) -> Tensor:
    target_BP = target_BP.to(logits_BPV.device)
    nll_P = F.cross_entropy(logits_BPV.float().flatten(0, 1), target_BP.flatten(), reduction="none")
    return nll_P.view(target_BP.shape).cpu()


@dataclass(frozen=True, kw_only=True)
class LengthScore:
    """The score of one context length on the same targets. `nll` is the mean of each document, in nats per token."""

    length: int
    n_targets: int
    nll: tuple[float, ...]

    @property
    def perplexity(self) -> float:
        """The exponential of the token-weighted mean: the documents' mean, as each has `n_targets` tokens."""
        return perplexity(self.nll)


def perplexity(nll: Sequence[float]) -> float:
    """The exponential of a mean of negative log-likelihoods in nats; inf where it is too large, nan for nan."""
    mean = math.fsum(nll) / len(nll)
    return math.inf if mean >= 700 else math.exp(mean)


def fixed_targets(
    model: PreTrainedModel,
    documents: Sequence[Tensor],
    context_lengths: Sequence[int],
    *,
    n_targets: int = 1024,
    bos_token_id: int | None = None,
    chunk: int = 4096,
    score_chunk: int = 1024,
    progress: Progress | None = None,
) -> list[LengthScore]:
    """Score the same last tokens of every document with more and more context before them.

    Only here does a falling curve prove that context is used: in a curve over lengths that end on different tokens,
    some ends are simply easier.

    Args:
        model: As in `read`.
        documents: (L,) token ids each, at least the longest context length long.
        context_lengths: Lengths of the window in tokens, the targets included: that many last tokens are read.
        n_targets: How many tokens at the end of each document are scored.
        bos_token_id: If given, stands in place of the first token of every window, for models trained to see it there.
        chunk: As in `read`.
        score_chunk: As in `read`.
        progress: As in `read`.

    Returns:
        One `LengthScore` for each of `context_lengths`, in their order.

    Raises:
        ValueError: A document is shorter than the longest length, a length does not exceed `n_targets`, or there are no
            documents or lengths.
    """
    _check_windows(documents, context_lengths, n_targets)
    scores = []
    for length in context_lengths:
        nll = []
        for document in documents:
            window = document[None, -length:]
            if bos_token_id is not None:
                window = torch.cat([window.new_full((1, 1), bos_token_id), window[:, 1:]], dim=1)
            nll_BN = read(model, window, n_targets=n_targets, chunk=chunk, score_chunk=score_chunk, progress=progress)
            nll.append(nll_BN.double().mean().item())
        scores.append(LengthScore(length=length, n_targets=n_targets, nll=tuple(nll)))
    return scores


def _pieces(first: int, end: int, chunk: int, score_chunk: int) -> Iterator[tuple[int, int]]:
    """Spans that cover 0 to `end`, at most `chunk` long before `first` and `score_chunk` long from there on."""
    for start in range(0, first, chunk):
        yield start, min(start + chunk, first)
    for start in range(first, end, score_chunk):
        yield start, min(start + score_chunk, end)


def _check(model: PreTrainedModel, input_ids: Tensor, *, n_targets: int, chunk: int, score_chunk: int) -> None:
    if input_ids.ndim != 2 or input_ids.is_floating_point():
        raise ValueError(
            f"input_ids has shape {tuple(input_ids.shape)} and dtype {input_ids.dtype}: expected integers (B, L). "
            "For one text pass ids[None]."
        )
    if not 1 <= n_targets < input_ids.shape[1]:
        raise ValueError(
            f"n_targets={n_targets} in a text of {input_ids.shape[1]} tokens: expected 1 to {input_ids.shape[1] - 1}, "
            "since the first token has nothing before it. Give a longer text or fewer targets."
        )
    if chunk < 1 or score_chunk < 1:
        raise ValueError(f"chunk={chunk}, score_chunk={score_chunk}: both must be at least 1 token.")
    if model.training:
        raise ValueError("The model is in train mode, where dropout would change the result. Call model.eval() first.")


def check_lengths(context_lengths: Sequence[int], n_targets: int) -> None:
    """ValueError for a window that the targets fill, or no targets."""
    if n_targets < 1:
        raise ValueError(f"n_targets={n_targets}: expected at least 1 token to score.")
    shortest = min(context_lengths)
    if shortest <= n_targets:
        raise ValueError(
            f"Context length {shortest} holds no context before n_targets={n_targets} tokens: a length is the whole "
            f"window, targets included. Use lengths above {n_targets} or fewer targets."
        )


def _check_windows(documents: Sequence[Tensor], context_lengths: Sequence[int], n_targets: int) -> None:
    if len(documents) == 0 or len(context_lengths) == 0:
        raise ValueError(
            f"Got {len(documents)} documents and {len(context_lengths)} context lengths: give at least one of each."
        )
    check_lengths(context_lengths, n_targets)
    longest = max(context_lengths)
    for index, document in enumerate(documents):
        if document.ndim != 1:
            raise ValueError(f"Document {index} has shape {tuple(document.shape)}: expected token ids (L,).")
        if len(document) < longest:
            raise ValueError(
                f"Document {index} has {len(document)} tokens, the longest context length is {longest}. "
                "Give a longer document, leave this one out, or ask for shorter lengths."
            )
