"""PEFT's prompt learning finds the cache under its new name too (entry 0042)."""

from __future__ import annotations

from typing import Any

NEW, OLD = "cache", "past_key_values"


def with_its_cache(stock: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    """In the place of `prepare_inputs_for_generation` of PEFT's language models.

    What the model prepares has the name that PEFT looks for meanwhile, and its own one again afterwards.
    """
    prepare, renamed = model.base_model_prepare_inputs_for_generation, False

    def prepared(*args: Any, **kwargs: Any) -> Any:
        nonlocal renamed
        inputs = prepare(*args, **kwargs)
        if NEW in inputs:
            inputs[OLD], renamed = inputs.pop(NEW), True
        return inputs

    model.base_model_prepare_inputs_for_generation = prepared
    try:
        inputs = stock(model, *args, **kwargs)
    finally:
        model.base_model_prepare_inputs_for_generation = prepare
    if renamed:
        inputs[NEW] = inputs.pop(OLD)
    return inputs
