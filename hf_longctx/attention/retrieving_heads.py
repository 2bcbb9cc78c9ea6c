"""Heads that retrieve: found by a text that is read twice, and the only ones to look tokens up where they are known.

A head retrieves if it attends, while a text is copied, to the token that comes next (Wu et al. 2024, "Retrieval Head
Mechanistically Explains Long-Context Factuality", https://arxiv.org/abs/2404.15574).
"""

# B batch, H query heads, G key/value heads, L queries, D head dim, N tokens of a text
from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import find_decoder, full_attention_layers
from ..patch import unwrap
from ..text.ids import SourceError, pieces
from .state import STATE

LEAST = 16  # tokens of a text


def check_heads(heads: Any, gate: str | None) -> None:
    """ValueError unless there are heads where the gate asks for some, pairs of a layer and a head, and nowhere else."""
    if heads is None and gate != "heads":
        return
    if gate != "heads":
        raise ValueError(f"heads={_short(heads)}: only gate='heads' has them, and gate is {gate!r}. Leave out heads.")
    if heads is None:
        raise ValueError(
            "gate='heads': no heads are given. CodeLookup(...).calibrated(model, ids) finds those of a model that "
            "retrieve, and returns the method with them."
        )
    wrong = [pair for pair in heads if type(pair) is not list or [type(n) for n in pair] != [int, int] or min(pair) < 0]
    if wrong or not heads or len({tuple(pair) for pair in heads}) < len(heads):
        raise ValueError(
            f"heads={_short(heads)}: expected at least one [layer, query head], whole numbers from 0, each once. "
            f"CodeLookup(...).calibrated(model, ids) finds them. Without any head this is LMInfinite."
        )


def check_heads_of(decoder: nn.Module, heads: list[list[int]]) -> None:
    """ValueError for a head that the model does not have, or whose layer a method leaves alone."""
    layers: list[Any] = full_attention_layers(decoder)
    modules = {int(module.layer_idx): module for module in layers}
    for layer, head in heads:
        if layer not in modules:
            raise ValueError(
                f"heads: there is one in layer {layer}, and the model's layers of full attention are "
                f"{', '.join(map(str, modules))}. Calibrate on this model: CodeLookup(...).calibrated(model, ids)."
            )
        module = modules[layer]
        count = getattr(module, "num_heads", None) or module.config.num_attention_heads
        if head >= count:
            raise ValueError(
                f"heads: [{layer}, {head}] is not there, layer {layer} has {count} query heads (0 to {count - 1}). "
                f"Calibrate on this model: CodeLookup(...).calibrated(model, ids)."
            )


def voting(q_BHLD: Tensor, heads: list[int] | None, groups: int) -> Tensor:
    """Queries by which a group of heads chooses as these heads alone would: the others say what one of these says."""
    if heads is None:
        return q_BHLD
    shared = q_BHLD.shape[1] // groups
    speaker = {head // shared: head for head in heads}
    said_by = [h if h in heads else speaker.get(h // shared, h) for h in range(q_BHLD.shape[1])]
    return torch.stack([q_BHLD[:, head] for head in said_by], 1)


def retrieving_heads(model: Any, method: Any, ids: Iterable[Any], share: float) -> list[list[int]]:
    """The [layer, query head]s of `model` that retrieve; see `CodeLookup.calibrated`. `method` is without heads."""
    if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= share <= 1:
        raise ValueError(f"share={share!r}: expected a share of a text's tokens, from 0 to 1.")
    root: Any = unwrap(model)
    if model.training:
        raise ValueError("the model is in train mode, where dropout would change what is seen. Call model.eval().")
    decoder: Any = find_decoder(root)
    vocabulary = root.get_input_embeddings().weight.shape[0]
    text = [one for piece in pieces(ids, 2**20, vocabulary, _failed) for one in piece]
    if len(text) < LEAST:
        raise ValueError(f"ids: {len(text)} tokens of a text; expected at least {LEAST}, and better some thousand.")
    own = method.resolve(decoder.config)
    n_local = min(own.n_local, len(text) // 2)  # the token to copy is beyond it
    once = {"top_k": 1, "per": "head", "by": "keys"}
    looking = dataclasses.replace(own, n_local=n_local, read_at=min(own.read_at, n_local), **once)
    twice = torch.tensor([text + text], device=root.device)
    right: Counter[tuple[int, int]] = Counter()

    def watch(module: Any, table_BTLK: Tensor) -> None:
        slots_HL = table_BTLK[0, :, len(text) : -1, 0]
        hits_H = ((slots_HL >= 0) & (twice[0, slots_HL.clamp(min=0)] == twice[0, len(text) + 1 :])).sum(-1)
        right.update({(int(module.layer_idx), head): n for head, n in enumerate(hits_H.tolist())})

    with looking.on(root), torch.no_grad():
        vars(decoder)[STATE].watching = watch
        decoder(input_ids=twice, use_cache=False)
    found = [[*place] for place, n in sorted(right.items()) if n and n >= share * (len(text) - 1)]
    if not found:
        place, n = max(right.items(), key=lambda item: item[1])
        raise ValueError(
            f"share={share}: no head looks up the next token for so many of the {len(text) - 1:,}; the best, "
            f"{list(place)}, does for {n:,}. Give a smaller share or a longer text, or take gate='score'."
        )
    return found


def _failed(error: Exception, taken: int, dropped: int) -> SourceError:
    return SourceError(f"the iterator of token ids raised {type(error).__name__}: {error} (after {taken:,} ids).")


def _short(heads: Any) -> str:
    return f"{heads!r:.60}" + "..." * (len(repr(heads)) > 60)
