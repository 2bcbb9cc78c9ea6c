"""Generation: caches, chunks, batches, beams, sampling, turns, streams, pipelines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, TextStreamer, pipeline

from tests.contract.registry import close, prop, prop_where, same
from tests.contract.stack import is_identity
from tests.tiny import greedy_uncached, left_padded, logits_of, text, tiny, tokenizer

LENGTHS = 9, 17, 26
NEW = 8


def rows() -> list[Tensor]:
    return [text(1, length, seed=length)[0] for length in LENGTHS]


def patched(method: Any, family: str, **changes: Any) -> Any:
    model = tiny(family, **changes)
    method.apply(model)
    return model


@prop
def a_left_padded_batch_equals_its_rows_alone(method: Any, family: str) -> None:
    model = patched(method, family)
    ids, mask = left_padded(rows())
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for kwargs in ({}, {"position_ids": positions}, {"use_cache": False}):
        batch = logits_of(model, ids, attention_mask=mask, **kwargs)
        for i, row in enumerate(rows()):
            close(batch[i, -len(row) :], logits_of(model, row[None])[0], f"row {i} with {list(kwargs)}")


@prop
def a_left_padded_generation_equals_its_rows_alone(method: Any, family: str) -> None:
    model = patched(method, family)
    ids, mask = left_padded(rows())
    settings = {"max_new_tokens": NEW, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    batch = model.generate(ids, attention_mask=mask, **settings)
    for i, row in enumerate(rows()):
        alone = model.generate(row[None], **settings)
        same(batch.sequences[i, -NEW:], alone.sequences[0, -NEW:], f"row {i}")
        close(torch.stack(batch.logits)[:, i], torch.stack(alone.logits)[:, 0], f"row {i}")


@prop_where(lambda method, family: is_identity(method))
def the_hook_alone_is_bit_equal_in_padded_generation(method: Any, family: str) -> None:
    model = tiny(family)
    ids, mask = left_padded(rows())
    settings = {"max_new_tokens": NEW, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    stock = model.generate(ids, attention_mask=mask, **settings)
    stock_logits = logits_of(model, ids, attention_mask=mask)
    with method.on(model):
        ours = model.generate(ids, attention_mask=mask, **settings)
        ours_logits = logits_of(model, ids, attention_mask=mask)
    same(ours.sequences, stock.sequences)
    same(torch.stack(ours.logits), torch.stack(stock.logits))
    same(ours_logits[mask.bool()], stock_logits[mask.bool()])


@prop
def a_right_padded_batch_equals_its_rows_alone(method: Any, family: str) -> None:
    model = patched(method, family)
    ids, mask = left_padded(rows())
    batch = logits_of(model, ids.flip(1), attention_mask=mask.flip(1))
    for i, row in enumerate(rows()):
        close(batch[i, : len(row)], logits_of(model, row.flip(0)[None])[0], f"row {i}")


@prop
def padding_on_mixed_sides_equals_rows_alone(method: Any, family: str) -> None:
    model = patched(method, family)
    row = text(1, 15)[0]
    ids, mask = left_padded([row, text(1, 21)[0]])
    ids[0], mask[0] = ids[0].roll(-4), mask[0].roll(-4)  # two pads before, four behind
    batch = logits_of(model, ids, attention_mask=mask)
    close(batch[0, 2:17], logits_of(model, row[None])[0])


@prop
def cached_generation_equals_full_forward(method: Any, family: str) -> None:
    model = patched(method, family)
    ids = text(2, 11)
    generated = model.generate(ids, max_new_tokens=14, do_sample=False)
    same(generated, greedy_uncached(model, ids, 14))
    cache, full = DynamicCache(config=model.config), logits_of(model, generated)
    steps = [logits_of(model, generated[:, i : i + 1], past_key_values=cache) for i in range(generated.shape[1])]
    close(torch.cat(steps, 1), full, "token by token")


@prop
def chunked_prefill_equals_one_prefill(method: Any, family: str) -> None:
    model = patched(method, family)
    ids = text(1, 37)
    full = logits_of(model, ids)
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    whole = model.generate(ids, **settings)
    for size in (1, 3, 5, 8, 13, 36, 37):
        cache = DynamicCache()
        chunks = [logits_of(model, chunk, past_key_values=cache) for chunk in ids.split(size, 1)]
        close(torch.cat(chunks, 1), full, f"chunks of {size}")
        if size > 1:
            parts = model.generate(ids, prefill_chunk_size=size, **settings)
            same(parts.sequences, whole.sequences)
            close(torch.stack(parts.logits), torch.stack(whole.logits), f"prefill_chunk_size={size}")


@prop
def a_padded_chunked_prefill_equals_one_prefill(method: Any, family: str) -> None:
    model = patched(method, family)
    ids, mask = left_padded(rows())
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    whole = model.generate(ids, attention_mask=mask, **settings)
    for size in (4, 7):  # whole chunks of the short rows are padding
        parts = model.generate(ids, attention_mask=mask, prefill_chunk_size=size, **settings)
        same(parts.sequences, whole.sequences)
        close(torch.stack(parts.logits), torch.stack(whole.logits), f"prefill_chunk_size={size}")


@prop
def beams_equal_uncached_beams(method: Any, family: str) -> None:
    model = patched(method, family)
    ids, mask = left_padded(rows())
    settings = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False, "num_return_sequences": 2}
    cached = model.generate(ids, attention_mask=mask, **settings)
    same(cached, model.generate(ids, attention_mask=mask, use_cache=False, **settings))


@prop
def sampling_with_a_seed_equals_uncached_sampling(method: Any, family: str) -> None:
    model = patched(method, family)
    ids = text(2, 13)
    outputs = []
    for use_cache in (True, True, False):
        torch.manual_seed(7)
        settings = {"max_new_tokens": 8, "do_sample": True, "num_return_sequences": 2, "use_cache": use_cache}
        outputs.append(model.generate(ids, **settings))
    same(outputs[0], outputs[1])
    same(outputs[0], outputs[2])


@prop
def a_second_turn_on_the_same_cache_equals_one_forward(method: Any, family: str) -> None:
    model = patched(method, family)
    first, question = text(1, 21, seed=3), text(1, 9, seed=4)
    settings = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    turn = model.generate(first, **settings)
    history = torch.cat([turn.sequences, question], 1)
    cached = model.generate(history, past_key_values=turn.past_key_values, **settings)
    fresh = model.generate(history, **settings)
    same(cached.sequences, fresh.sequences)
    close(torch.stack(cached.logits), torch.stack(fresh.logits))


@prop
def a_left_padded_second_turn_equals_rows_alone(method: Any, family: str) -> None:
    model = patched(method, family)
    ids, mask = left_padded(rows())
    settings = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    turn = model.generate(ids, attention_mask=mask, **settings)
    questions = [text(1, length, seed=50 + length)[0] for length in (6, 2, 11)]
    more, more_mask = left_padded(questions)  # pads in the middle of the text
    answer_mask = torch.ones(len(ids), 5, dtype=torch.long)
    together = model.generate(
        torch.cat([turn.sequences, more], 1),
        attention_mask=torch.cat([mask, answer_mask, more_mask], 1),
        past_key_values=turn.past_key_values,
        **settings,
    )
    fresh = model.generate(
        torch.cat([turn.sequences, more], 1),
        attention_mask=torch.cat([mask, answer_mask, more_mask], 1),
        **settings,
    )
    same(together.sequences, fresh.sequences, "against one prefill of both turns")
    close(torch.stack(together.logits), torch.stack(fresh.logits), "against one prefill of both turns")
    if family == "gemma3":
        return  # its sliding layers, which are stock, count pads in the middle as tokens of the window
    for i, row in enumerate(rows()):
        history = torch.cat([row, turn.sequences[i, -5:], questions[i]])[None]
        alone = model.generate(history, **settings)
        close(torch.stack(together.logits)[:, i], torch.stack(alone.logits)[:, 0], f"row {i}")
        same(together.sequences[i, -5:], alone.sequences[0, -5:], f"row {i}")


@prop
def a_streamer_and_a_pipeline_say_what_generate_says(method: Any, family: str) -> None:
    model, tokens = patched(method, family), tokenizer()
    prompts = [" ".join(f"w{i}" for i in row.tolist()) for row in rows()[:2]]
    heard: list[str] = []
    streamer = TextStreamer(tokens, skip_prompt=True)
    streamer.on_finalized_text = lambda words, stream_end=False: heard.append(words)
    settings = {"max_new_tokens": 6, "do_sample": False}
    ids = tokens(prompts[0], return_tensors="pt").input_ids
    said = model.generate(ids, streamer=streamer, **settings)[0, ids.shape[1] :]
    assert "".join(heard).split() == tokens.decode(said).split()
    pipe = pipeline("text-generation", model=model, tokenizer=tokens, device="cpu")
    outputs = pipe(prompts, batch_size=2, return_full_text=False, **settings)
    assert outputs[0][0]["generated_text"].split() == tokens.decode(said).split()
