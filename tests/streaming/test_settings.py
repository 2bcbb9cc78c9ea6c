"""Every setting of `generate`: a stream writes what `generate` writes with it, or refuses it by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, WatermarkingConfig

from hf_longctx import LMInfinite, stream
from hf_longctx.streaming.settings import REFUSED
from tests.tiny import text, tiny

SAMPLED = {"do_sample": True, "top_k": 0}
END = "END"  # a token that is written third without any setting

# a value that changes what is written, and what it needs beside it
TOKENS: dict[str, dict[str, Any]] = {
    "max_new_tokens": {"max_new_tokens": 5},
    "min_length": {"min_length": 60, "eos_token_id": END},
    "min_new_tokens": {"min_new_tokens": 6, "eos_token_id": END},
    "max_time": {"max_time": 1e-9},
    "stop_strings": {"stop_strings": ["w5"]},
    "do_sample": SAMPLED,
    "num_beams": {"num_beams": 3},
    "use_mtp": {"use_mtp": True},
    "temperature": {**SAMPLED, "temperature": 0.3},
    "top_k": {"do_sample": True, "top_k": 3},
    "top_p": {**SAMPLED, "top_p": 0.5},
    "min_p": {**SAMPLED, "min_p": 0.3},
    "top_h": {**SAMPLED, "top_h": 0.3},
    "typical_p": {**SAMPLED, "typical_p": 0.3},
    "epsilon_cutoff": {**SAMPLED, "epsilon_cutoff": 0.01},
    "eta_cutoff": {**SAMPLED, "eta_cutoff": 0.01},
    "repetition_penalty": {"repetition_penalty": 1.8},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.8},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[END]]},
    "renormalize_logits": {**SAMPLED, "renormalize_logits": True, "repetition_penalty": 1.8},
    "forced_bos_token_id": {"forced_bos_token_id": 7},
    "forced_eos_token_id": {"forced_eos_token_id": 7},
    "remove_invalid_values": {"remove_invalid_values": True},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (1, 2.0), "eos_token_id": 9},
    "suppress_tokens": {"suppress_tokens": [END]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [END]},
    "sequence_bias": {"sequence_bias": [[[9], 30.0]]},
    "token_healing": {"token_healing": True},
    "guidance_scale": {"guidance_scale": 3.0},
    "watermarking_config": {"watermarking_config": WatermarkingConfig(bias=20.0)},
    "num_return_sequences": {"do_sample": True, "num_return_sequences": 2},
    "eos_token_id": {"eos_token_id": END},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 2},
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 3},
    "dola_layers": {"dola_layers": "low"},
    "num_beam_groups": {"num_beam_groups": 2},
    "constraints": {"constraints": [1]},
    "force_words_ids": {"force_words_ids": [[5]]},
    "cache_implementation": {"cache_implementation": "static"},
}
# they choose among the rows of beams and the tokens of an assistant, or say how it is done and what is returned beside
NO_TOKENS = {
    "early_stopping", "length_penalty", "diversity_penalty", "low_memory", "use_cache", "cache_config", "max_cache_len",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "pad_token_id", "bos_token_id", "decoder_start_token_id", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "max_matching_ngram_size",
    "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight",
    "speculation_type", "compile_config", "disable_compile", "continuous_batching_config", "prefill_chunk_size",
    "_from_model_config", "_commit_hash", "transformers_version", "max_length", "look_up_last",
}  # fmt: skip


def filled(value: Any, end: int) -> Any:
    if isinstance(value, list):
        return [filled(item, end) for item in value]
    return end if value == END else value


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TOKENS)
def test_a_setting_does_what_it_does_in_generate_or_is_refused_by_name(name: str) -> None:
    if name not in vars(GenerationConfig()):
        pytest.skip("this transformers has no such setting")
    model, ids = tiny(), text(1, 50)
    with LMInfinite(n_global=2, n_local=16).on(model):
        plain = {"max_new_tokens": 12, "do_sample": False}
        free = model.generate(ids, **plain)[0, 50:].tolist()
        settings = {**plain, **{key: filled(value, free[2]) for key, value in TOKENS[name].items()}}
        reader = stream(model, ids[0])
        torch.manual_seed(3)
        if name in REFUSED or name == "cache_implementation":
            with pytest.raises(ValueError, match=f"^{name}=.*Leave it out"):
                reader.generate(**settings)
            return
        written = list(reader.generate(**settings))
        torch.manual_seed(3)
        assert written == model.generate(ids, **settings)[0, 50:].tolist()
        # what removes nan, and what is drawn in another unit, writes the same
        assert written != free or name in ("remove_invalid_values", "renormalize_logits")


def test_every_setting_that_transformers_has_is_looked_at() -> None:
    assert set(vars(GenerationConfig())) - set(TOKENS) - NO_TOKENS == set()
    assert set(REFUSED) <= set(TOKENS)


def test_a_cache_that_a_checkpoint_names_is_passed_over_and_off_values_are_taken() -> None:
    model, ids = tiny(), text(1, 20)
    with LMInfinite(n_global=2, n_local=16).on(model):
        plain = {"max_new_tokens": 6, "do_sample": False}
        free = list(stream(model, ids[0]).generate(**plain))
        off = {"encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0, "token_healing": False}
        assert list(stream(model, ids[0]).generate(**plain, **off, cache_implementation="dynamic")) == free
        model.generation_config.cache_implementation = "static"
        assert list(stream(model, ids[0]).generate(**plain)) == free
