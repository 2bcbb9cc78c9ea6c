"""The settings of `generate` that a stream can have, and the reasons for those it cannot."""

from __future__ import annotations

from typing import Any

from ..upstream.caches import check_cache_kind

# they need all that was read, several texts at once, or a cache that can be rewound; with the values that mean "off"
REFUSED: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "num_beam_groups": (None, 1),
    "force_words_ids": (None,),
    "constraints": (None,),
    "guidance_scale": (None, 1),
    "encoder_repetition_penalty": (None, 1),
    "encoder_no_repeat_ngram_size": (None, 0),
    "dola_layers": (None,),
    "token_healing": (None, False),
    "penalty_alpha": (None, 0),
    "prompt_lookup_num_tokens": (None,),
    "use_mtp": (None, False),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "begin_suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "stop_strings": (None,),
    "max_time": (None,),
}


def generation_config(model: Any, given: Any, settings: dict[str, Any], recent: int | None) -> Any:
    """The `GenerationConfig` of a stream that keeps its last `recent` ids; ValueError for settings it cannot have."""
    most = settings.get("max_new_tokens", getattr(given or model.generation_config, "max_new_tokens", None))
    if most is not None and (type(most) is not int or most < 1):
        raise ValueError(f"max_new_tokens={most!r}: expected a whole number, at least 1, or None for no limit.")
    config, unknown = model._prepare_generation_config(given, **settings)
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: no such generation setting. Pass those of a transformers GenerationConfig, "
            f"such as max_new_tokens, do_sample, temperature or eos_token_id."
        )
    for name, off in REFUSED.items():
        value = getattr(config, name, None)
        if value not in off:
            raise ValueError(
                f"{name}={value!r}: a stream cannot rewind: it keeps one sequence and its last {recent} ids, which is "
                f"not enough for this setting. Leave it out (or set it to {off[-1]!r})."
            )
    check_cache_kind(
        getattr(config, "cache_implementation", None), model.generation_config.cache_implementation, "a stream"
    )
    if config.pad_token_id is None:  # nothing is padded; transformers would say that it chose one
        config.pad_token_id = 0
    model._prepare_special_tokens(config, device=model.device)
    return config
