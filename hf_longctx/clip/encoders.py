"""The text encoders of a diffusion pipeline: found by structure, and read segment by segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..settings import is_whole
from ..text.tokens import encode
from .stretch import text_length

_FILLING = 60  # the number of last states of an empty prompt whose mean is the paper's filling
_BATCH = 64  # segments in one forward
_READ = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
_EXPECTED = "expected a Stable Diffusion or SDXL pipeline, or its (tokenizer, text_encoder), or a list of such pairs"


class Encoded(NamedTuple):
    """Segments as an encoder reads them; the width is its own."""

    states: list[Tensor]  # for each segment those of its start token and its words, [tokens, width]
    pooled: Tensor | None  # [segments, width of the projection]
    filling: Tensor  # the mean state after an empty prompt, [1, width]


@dataclass
class TextEncoder:
    """A CLIP text encoder with its tokenizer, read at the layer where diffusion models read it."""

    tokenizer: Any
    model: Any
    penultimate: bool = False  # SDXL's layer, without the final norm; Stable Diffusion's is the last, with it
    clip_skip: int = 0

    @cached_property
    def length(self) -> int:
        """The number of tokens that the encoder reads at once, with start and end token."""
        return min(text_length(self.model), int(self.tokenizer.model_max_length))

    def count(self, text: str) -> int:
        """The number of tokens of a text, without start and end token."""
        return len(encode(self.tokenizer, text))

    def encode(self, texts: list[str]) -> Encoded:
        """Texts that fit; each as if encoded alone, since a token sees only earlier ones."""
        states: list[Tensor] = []
        pooled: list[Tensor] = []
        for start in range(0, len(texts), _BATCH):
            found = self.tokens(texts[start : start + _BATCH], padding=True)
            lengths = found.attention_mask.sum(1) - 1  # without the end token
            self._check_ends(found.input_ids, lengths)
            hidden, projected = self._forward(found.input_ids)
            states += [row[:length] for row, length in zip(hidden, lengths.tolist(), strict=True)]
            pooled += [] if projected is None else [projected]
        empty = self._forward(self.tokens([""]).input_ids)[0]
        filling = empty[0, -_FILLING:].float().mean(0, keepdim=True).to(empty.dtype)
        return Encoded(states, torch.cat(pooled) if pooled else None, filling)

    def tokens(self, texts: list[str], padding: bool | str = "max_length") -> Any:
        """`input_ids` and `attention_mask`, [texts, tokens], without truncation: every text must fit."""
        length = self.length if padding == "max_length" else None
        return self.tokenizer(
            texts, padding=padding, max_length=length, truncation=False, padding_side="right", return_tensors="pt"
        )

    def _check_ends(self, ids: Tensor, lengths: Tensor) -> None:
        first, last = ids[:, 0], ids[torch.arange(len(ids)), lengths]
        if not ((first == self.tokenizer.bos_token_id) & (last == self.tokenizer.eos_token_id)).all():
            raise ValueError(
                f"{type(self.tokenizer).__name__} does not put a text between a start and an end token; expected "
                f"CLIP's tokenizer."
            )

    def _forward(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        device = next(self.model.parameters()).device
        # the hook of an offloaded encoder moves the ids
        out = self.model(ids if device.type == "meta" else ids.to(device), output_hidden_states=True)
        if self.penultimate:
            return out.hidden_states[-2 - self.clip_skip], getattr(out, "text_embeds", None)
        if not self.clip_skip:
            return out.last_hidden_state, None
        norm = next(module for name, module in self.model.named_modules() if name.endswith("final_layer_norm"))
        return norm(out.hidden_states[-1 - self.clip_skip]), None


def text_encoders(pipeline_or_encoders: Any, clip_skip: int | None = None) -> list[TextEncoder]:
    """The encoders of a pipeline, or of given pairs, in the order of their channels."""
    pairs = _pairs(pipeline_or_encoders)
    for tokenizer, model in pairs:
        _check(tokenizer, model)
    projecting = [hasattr(model, "text_projection") for _, model in pairs]
    if any(projecting[:-1]) or (len(pairs) == 2 and not projecting[1]):
        raise ValueError(
            f"{' and '.join(type(model).__name__ for _, model in pairs)}: expected one CLIP text encoder (Stable "
            f"Diffusion), or two of which the last has a projection (SDXL)."
        )
    skip = 0 if clip_skip is None else clip_skip
    layers = min(int(model.config.num_hidden_layers) for _, model in pairs)
    if not is_whole(skip, 0) or skip >= layers:
        raise ValueError(f"clip_skip={clip_skip!r}: expected None or 0 to {layers - 1}, of {layers} layers.")
    return [TextEncoder(tokenizer, model, projecting[-1], skip) for tokenizer, model in pairs]


def _pairs(given: Any) -> list[tuple[Any, Any]]:
    if hasattr(given, "text_encoder"):
        if getattr(given, "text_encoder_3", None) is not None:
            raise ValueError(
                f"{type(given).__name__} reads with three text encoders, of which one accepts long prompts itself (see "
                f"its max_sequence_length); {_EXPECTED}."
            )
        parts = [(getattr(given, one, None), getattr(given, two, None)) for one, two in _READ]
        found = [(tokenizer, model) for tokenizer, model in parts if tokenizer is not None and model is not None]
        if not found:
            raise ValueError(f"{type(given).__name__} was loaded without its text encoders; load them, or give pairs.")
        return found
    if not isinstance(given, Sequence) or isinstance(given, str) or not 1 <= len(given) <= 2:
        raise ValueError(f"{type(given).__name__}: {_EXPECTED}.")
    if len(given) == 2 and isinstance(given[1], nn.Module):
        given = [given]
    if not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in given):
        raise ValueError(f"{given!r}: {_EXPECTED}.")
    return [(tokenizer, model) for tokenizer, model in given]


def _check(tokenizer: Any, model: Any) -> None:
    if not callable(tokenizer) or not hasattr(tokenizer, "model_max_length"):
        raise ValueError(f"{type(tokenizer).__name__} in place of a tokenizer: {_EXPECTED}.")
    if not isinstance(model, nn.Module) or hasattr(model, "vision_model"):
        raise ValueError(f"{type(model).__name__} in place of a text encoder: {_EXPECTED}.")
    try:
        text_length(model)
    except ValueError as error:
        raise ValueError(
            f"{type(model).__name__} is no CLIP text encoder (T5, for example, reads long prompts itself): {_EXPECTED}."
        ) from error
