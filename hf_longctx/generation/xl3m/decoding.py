"""Stock `generate` on a shorter prompt than the one it was called with."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GENERATION_MODES_MAPPING

from ...text.tokens import left_pad
from ...upstream.caches import CACHE_NAMES

HERE = (*CACHE_NAMES, "attention_mask", "position_ids", "cache_position", "logits_to_keep", "use_cache")


def decode(
    model: Any,
    prompt_BL: Tensor,
    rows: list[list[int]],
    *,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    given: dict[str, Any],
    model_kwargs: dict[str, Any],
) -> Any:
    """What `generate` returns for `prompt_BL`, if the model has read `rows` in its place.

    `generate` writes as many tokens as after `prompt_BL`, by the same strategy. Processors and criteria of the caller
    see the ids of `rows`: those of each prompt that the caller gave, of different lengths; `prompt_BL` is repeated for
    beams and sequences. `given` are arguments of `generate` that are no settings: streamer, tokenizer.
    """
    length, each = prompt_BL.shape[1], repeats(generation_config)
    config = copy.deepcopy(generation_config)
    config.max_new_tokens, config.max_length = generation_config.max_length - length, None
    config.min_new_tokens = max(0, (generation_config.min_length or 0) - length) or None
    config.min_length = None
    config.max_time = None  # its criterion is in `stopping_criteria`, and counts from the call on
    ids_BL, mask_BL = (batch.to(prompt_BL.device) for batch in left_pad(rows, _pad_id(config)))
    processors, criteria = _defaults(model, prompt_BL, generation_config, given.get("tokenizer"), model_kwargs)
    if given.get("streamer") is not None:
        given = {**given, "streamer": _WithoutPrompt(given["streamer"])}
    with _settings_are_complete(model):
        result = GenerationMixin.generate(
            model,
            ids_BL,
            attention_mask=mask_BL,
            generation_config=config,
            logits_processor=LogitsProcessorList(_own(logits_processor or [], processors)),
            stopping_criteria=StoppingCriteriaList(_own(stopping_criteria or [], criteria)),
            **given,
            **{name: value for name, value in model_kwargs.items() if name not in HERE},
        )
    sequences = result if isinstance(result, Tensor) else result.sequences
    prompts = prompt_BL[::each].repeat_interleave(len(sequences) // len(rows), 0)
    whole = torch.cat([prompts.to(sequences.device), sequences[:, ids_BL.shape[1] :]], 1)
    if isinstance(result, Tensor):
        return whole
    result.sequences = whole
    return result


def decode_whole(
    model: Any, prompt_BL: Tensor, rows: list[list[int]], *, given: dict[str, Any], model_kwargs: Any, **how: Any
) -> Any:
    """What stock `generate` returns for `prompt_BL`: the decoding method that it would have called, as it calls it.

    Cache, positions and padding are the caller's own. The arguments are those of `decode`.
    """
    mode = how["generation_config"].get_generation_mode(given.get("assistant_model"))
    stock = getattr(type(model), GENERATION_MODES_MAPPING[mode], None)
    if stock is None:  # transformers has moved it to a repository, and only `generate` calls that
        return decode(model, prompt_BL, rows, given=given, model_kwargs=model_kwargs, **how)
    named = {name: given.get(name) for name in ("assistant_model", "streamer")}
    arguments = model._extract_generation_mode_kwargs(None, dict(given), None, **named)  # synced_gpus among them
    if "inputs_tensor" in inspect.signature(stock).parameters:
        arguments["inputs_tensor"] = prompt_BL
    return stock(model, prompt_BL, **how, **arguments, **model_kwargs)


def repeats(generation_config: Any) -> int:
    """How many rows `generate` makes of each prompt."""
    return int(max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1))


class _WithoutPrompt:
    """A streamer that has been given the prompt already."""

    def __init__(self, streamer: Any) -> None:
        self._streamer, self._prompt, self.end = streamer, True, streamer.end

    def put(self, value: Tensor) -> None:
        if not self._prompt:
            self._streamer.put(value)
        self._prompt = False


def _pad_id(config: Any) -> int:
    ends = config.eos_token_id
    first = ends[0] if isinstance(ends, list) else ends
    return (first or 0) if config.pad_token_id is None else config.pad_token_id


@contextmanager
def _settings_are_complete(model: Any) -> Iterator[None]:
    """`generate` fills each None from the model's settings, and has done so once: None now means None."""
    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


def _defaults(
    model: Any, prompt_BL: Tensor, config: Any, tokenizer: Any, model_kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    """What `generate` made of its settings for the long prompt. It makes it again for the short one."""
    processors = model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=prompt_BL.shape[1],
        encoder_input_ids=prompt_BL,
        logits_processor=LogitsProcessorList(),
        device=prompt_BL.device,
        model_kwargs=model_kwargs,
    )
    return processors, model._get_stopping_criteria(
        generation_config=config, stopping_criteria=StoppingCriteriaList(), tokenizer=tokenizer
    )


def _own(prepared: Any, defaults: Any) -> list[Any]:
    """Those of `prepared` that the caller has brought. A limit of time counts from the call on, so it stays too."""
    return [item for item in prepared if not any(_same(item, other) for other in defaults)]


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other) or vars(one).keys() != vars(other).keys():
        return False
    return all(_equal(value, vars(other)[name]) for name, value in vars(one).items())


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    same = one is other or one == other
    return isinstance(same, bool) and same  # an array's comparison is an array
