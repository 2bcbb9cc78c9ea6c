"""`generate(look_up_last=N)`: only the last N tokens of a prompt look tokens up, however it is padded and cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from hf_longctx import CodeLookup, InfLLM, LMInfinite, stream
from hf_longctx.attention.without import without_look_ups
from tests.contract.registry import close, differs, same
from tests.tiny import left_padded, logits_of, text, tiny

METHODS: dict[str, Any] = {
    "code_lookup": CodeLookup(n_global=2, n_local=8, top_k=4, shortlist=12),
    "code_lookup_margin": CodeLookup(n_global=2, n_local=8, top_k=4, shortlist=12, gate_margin=0.5),
    "code_lookup_count": CodeLookup(n_global=2, n_local=8, top_k=4, shortlist=12, gate="count"),
    "lm_infinite": LMInfinite(n_global=2, n_local=8, top_k=4, top_k_from_layer=0),
    "infllm": InfLLM(n_global=2, n_local=8, top_k=2, block_size=4),
}
CODES = METHODS["code_lookup"]
PROMPT, LAST, NEW = text(1, 70), 7, 4
each = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def written(model: Any, ids: Tensor, **settings: Any) -> Tensor:
    """The logits of `NEW` tokens, (B, NEW, V)."""
    how = {"max_new_tokens": NEW, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return torch.stack(model.generate(ids, **{**how, **settings}).logits, 1)


def read_in_two(model: Any, ids_L: Tensor, last: int) -> Tensor:
    """The logits of `NEW` tokens, (NEW, V), after all but the last tokens were read without look-ups."""
    reader = stream(model, ids_L[:-last], bounded=False, look_up=False)
    reader.read(ids_L[-last:])
    logits = [reader.logits.clone()]
    for _ in reader.generate(max_new_tokens=NEW - 1, do_sample=False):
        logits.append(reader.logits.clone())
    return torch.stack(logits)


@each
def test_it_is_reading_without_look_ups_and_then_the_last_tokens_with_them(method: Any) -> None:
    model = tiny()
    with method.on(model):
        wanted = read_in_two(model, PROMPT[0], LAST)
        got = written(model, PROMPT, look_up_last=LAST)
        close(got[0], wanted)
        for chunk in (1, 9, 64, 65, 70):
            close(written(model, PROMPT, look_up_last=LAST, prefill_chunk_size=chunk), got)
        differs(written(model, PROMPT), got)
        for every in (len(PROMPT[0]), 71, 10**9):
            same(written(model, PROMPT, look_up_last=every), written(model, PROMPT))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("chunk", [None, 11])
def test_rows_of_a_padded_batch_are_what_they_are_alone(family: str, chunk: int | None) -> None:
    model, rows = tiny(family), [text(1, n, seed=n)[0] for n in (50, 33, 4)]
    ids, mask = left_padded(rows)
    with CODES.on(model):
        got = written(model, ids, attention_mask=mask, look_up_last=LAST, prefill_chunk_size=chunk)
        for mine, row in zip(got, rows, strict=True):
            close(mine, written(model, row[None], look_up_last=LAST)[0])


def test_beams_and_embeddings() -> None:
    model, beams = tiny(), {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}
    with CODES.on(model):
        whole = model.generate(PROMPT, look_up_last=LAST, **beams)
        assert torch.equal(whole, model.generate(PROMPT, look_up_last=LAST, prefill_chunk_size=20, **beams))
        embeds = model.get_input_embeddings()(PROMPT)
        got = written(model, None, inputs_embeds=embeds, look_up_last=LAST)
        close(got, written(model, PROMPT, look_up_last=LAST))


@pytest.mark.parametrize("last", [3, 7, 12])
def test_in_a_second_turn_they_are_counted_from_the_end_of_all(last: int) -> None:
    """7 new tokens: all look up with 12, and what the cache holds is not read again."""
    model = tiny()
    with CODES.on(model):
        cache = DynamicCache(config=model.config)
        logits_of(model, PROMPT[:, :-7], past_key_values=cache)
        reader = stream(model, PROMPT[0, :-7], bounded=False)
        if last < 7:
            reader.read(PROMPT[0, -7:-last], look_up=False)
        reader.read(PROMPT[0, -min(last, 7) :])
        got = written(model, PROMPT, past_key_values=cache, look_up_last=last, max_new_tokens=1)
        close(got[0, 0], reader.logits)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"look_up_last": 0}, "look_up_last=0: expected a whole number of tokens, at least 1"),
    "negative": ({"look_up_last": -3}, "look_up_last=-3: expected a whole number"),
    "a fraction": ({"look_up_last": 2.5}, "look_up_last=2.5: expected a whole number"),
    "true": ({"look_up_last": True}, "look_up_last=True: expected a whole number"),
    "text": ({"look_up_last": "7"}, "look_up_last='7': expected a whole number"),
    "no cache": ({"look_up_last": 7, "use_cache": False}, "look_up_last=7: with use_cache=False .* Leave out one"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_numbers_are_refused_before_anything_is_read(case: str) -> None:
    settings, message = WRONG[case]
    model, cache = tiny(), DynamicCache()
    with CODES.on(model):
        whole = written(model, PROMPT)
        with pytest.raises(ValueError, match=message):
            model.generate(PROMPT, past_key_values=cache, max_new_tokens=2, **settings)
        assert cache.get_seq_length() == 0
        same(written(model, PROMPT), whole, "look-ups are as before")


@pytest.mark.parametrize("method", [LMInfinite(n_global=2, n_local=8), None], ids=repr)
def test_models_that_look_nothing_up_refuse_it(method: Any) -> None:
    model = tiny()
    if method is not None:
        method.apply(model)
    with pytest.raises(ValueError, match=r"look_up_last=7: the model carries .*, which looks nothing up"):
        written(model, PROMPT, look_up_last=LAST)


def test_look_ups_are_on_again_after_an_error() -> None:
    model = tiny()
    with CODES.on(model):
        whole = logits_of(model, PROMPT)
        with pytest.raises(IndexError):
            model.generate(PROMPT.clone().fill_(1000), look_up_last=LAST, max_new_tokens=2)
        same(logits_of(model, PROMPT), whole)


def test_it_is_kept_in_a_generation_config(tmp_path: Path) -> None:
    model = tiny()
    with CODES.on(model):
        wanted = written(model, PROMPT, look_up_last=LAST)
        config = GenerationConfig(look_up_last=LAST)
        same(written(model, PROMPT, generation_config=config), wanted)
        config.save_pretrained(tmp_path)
        model.generation_config = GenerationConfig.from_pretrained(tmp_path)
        same(written(model, PROMPT), wanted)
    assert "look_up_last" not in GenerationConfig().to_dict()


@each
def test_generate_inside_a_block_without_look_ups_reads_its_prompt_without_them(method: Any) -> None:
    model = tiny()
    with method.on(model):
        with without_look_ups(model):
            unseen = model(PROMPT).logits[:, -1:]
            close(written(model, PROMPT, max_new_tokens=1), unseen)
            differs(written(model, PROMPT, max_new_tokens=1, look_up_last=LAST), unseen)
            close(written(model, PROMPT, max_new_tokens=1), unseen)
        differs(written(model, PROMPT, max_new_tokens=1), unseen)
