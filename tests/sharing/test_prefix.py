"""Many questions and samples behind one document: what stock `generate` gives for document and question together."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from hf_longctx import RopeScaling, applied, load_prefix, shared_prefix
from tests.contract.registry import fingerprint, same
from tests.sharing.prefixes import DOCUMENT, GREEDY, IDS, LOGITS, MASK, QUESTIONS, agree, behind, mended, stock_batch
from tests.tiny import EOS, FAMILIES, MORE_FAMILIES, logits_of, text, tiny


# -- exact -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_padded_batch_of_unequal_questions_equals_stock(family: str, attn: str) -> None:
    model = tiny(family, attn_implementation=attn)
    with shared_prefix(model, DOCUMENT) as prefix:
        same(prefix.generate(IDS, attention_mask=MASK, **GREEDY)[:, : IDS.shape[1]], IDS, "questions come first")
        agree(prefix, tiny(family, attn_implementation=attn), DOCUMENT, QUESTIONS)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_length_of_document(family: str, length: int) -> None:
    model, document = tiny(family), text(1, length, seed=length)[0]
    with shared_prefix(model, document[None]) as prefix:  # gemma3's window is 8
        agree(prefix, model, document, QUESTIONS)
        agree(prefix, model, document, QUESTIONS[:1])  # a batch of one
        out = prefix.generate(**GREEDY)
    same(out, model.generate(document[None], **GREEDY)[:, length:], "the document itself")


def test_stock_forwards_inside_the_block_are_stock() -> None:
    model = tiny("gemma3")
    before = logits_of(model, behind(DOCUMENT, IDS))
    padded = model.generate(IDS, attention_mask=MASK, **GREEDY)
    with shared_prefix(model, DOCUMENT):
        same(logits_of(model, behind(DOCUMENT, IDS)), before)
        same(model.generate(IDS, attention_mask=MASK, **GREEDY), padded)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_of_a_seed_are_those_of_stock(family: str) -> None:
    model = tiny(family)
    settings: dict[str, Any] = {"do_sample": True, "max_new_tokens": 9, "num_return_sequences": 5}
    torch.manual_seed(3)
    stock = model.generate(DOCUMENT[None], **settings)[:, len(DOCUMENT) :]
    torch.manual_seed(3)
    asked = stock_batch(model, **settings)
    with shared_prefix(model, DOCUMENT) as prefix:
        torch.manual_seed(3)
        same(prefix.generate(**settings), stock, "of the document")
        torch.manual_seed(3)
        same(prefix.generate(IDS, attention_mask=MASK, **settings)[:, -9:], asked[:, -9:], "of questions")
    assert len(stock.unique(dim=0)) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_equal_stock(family: str) -> None:
    model = tiny(family, eos_token_id=EOS)
    settings: dict[str, Any] = {**GREEDY, "num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5}
    stock = stock_batch(model, **settings)
    alone = model.generate(DOCUMENT[None], **settings)
    with shared_prefix(model, DOCUMENT) as prefix:
        out = prefix.generate(IDS, attention_mask=MASK, **settings)
        width = out.shape[1] - IDS.shape[1]
        same(out[:, -width:], stock[:, -width:])
        same(prefix.generate(**settings), alone[:, len(DOCUMENT) :])


def test_processors_and_lengths_see_the_prefix() -> None:
    model = tiny()
    settings: dict[str, Any] = {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "max_length": 40}
    stock = model.generate(behind(DOCUMENT, IDS[:1, -5:]), do_sample=False, **settings)
    with shared_prefix(model, DOCUMENT) as prefix:
        out = prefix.generate(IDS[:1, -5:], do_sample=False, **settings)
    same(out, stock[:, len(DOCUMENT) :])
    assert out.shape[1] == 40 - len(DOCUMENT)


def test_settings_that_say_no_cache() -> None:
    model = tiny()
    with shared_prefix(model, DOCUMENT) as prefix:
        plain = prefix.generate(IDS, attention_mask=MASK, **GREEDY)
        config = GenerationConfig(use_cache=False, **GREEDY)
        same(prefix.generate(IDS, attention_mask=MASK, generation_config=config), plain)
        model.config.use_cache = model.generation_config.use_cache = False  # as Trainer saves it
        same(prefix.generate(IDS, attention_mask=MASK, **GREEDY), plain)


@mended("prefill_chunk_size")
def test_questions_read_in_chunks() -> None:
    model = tiny("gemma3")
    with shared_prefix(model, DOCUMENT, chunk=5) as prefix:
        agree(prefix, model, DOCUMENT, QUESTIONS)
        whole = prefix.generate(IDS, attention_mask=MASK, **GREEDY)
        same(prefix.generate(IDS, attention_mask=MASK, prefill_chunk_size=3, **GREEDY), whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_turns_of_a_conversation(family: str) -> None:
    model, more = tiny(family), text(3, 4, seed=9)
    with shared_prefix(model, DOCUMENT) as prefix:
        cache = prefix.cache()
        first = prefix.generate(IDS, attention_mask=MASK, past_key_values=cache, **GREEDY)
        read = cache.get_seq_length()
        said = torch.cat([first, more], 1)
        mask = torch.cat([MASK, torch.ones(3, 16).long()], 1)
        mask[1, 19] = 0  # the second question of the second row is a token shorter: padding between turns
        second = prefix.generate(said, attention_mask=mask, past_key_values=cache, **GREEDY)
        assert cache.get_seq_length() == read + 4 + 12
    for i in range(3):
        row = torch.cat([DOCUMENT, said[i][mask[i].bool()]])[None]
        same(second[i, said.shape[1] :], model.generate(row, **GREEDY)[0, row.shape[1] :], f"row {i}")


@pytest.mark.parametrize("chunk", [None, 1, 4, 5, 10])  # of 11 tokens: 1, 5 and 10 leave a single one for the end
@pytest.mark.parametrize("family", FAMILIES)
def test_levels_equal_one(family: str, chunk: int | None) -> None:
    model = tiny(family)
    with shared_prefix(model, DOCUMENT[:4], chunk=chunk) as system:
        document = system.extend(DOCUMENT[4:15], chunk=chunk)
        for kept in (*document.levels[-1].keys, *document.levels[-1].values):
            assert kept.shape[2] in (8, 11)  # gemma3's window, or all
            assert kept.untyped_storage().nbytes() == kept.nbytes
        deepest = document.extend(DOCUMENT[15:])
        for level in range(2):
            assert deepest.levels[level] is (system, document)[level].levels[-1]  # the very tensors
        same(deepest.ids, DOCUMENT)
        agree(deepest, model, DOCUMENT, QUESTIONS)
        agree(document, model, DOCUMENT[:15], QUESTIONS)  # a parent is as good as before
        same(deepest.generate(**GREEDY), model.generate(DOCUMENT[None], **GREEDY)[:, len(DOCUMENT) :])
        single = document.extend(DOCUMENT[15:16])
        same(single.generate(**GREEDY), model.generate(DOCUMENT[None, :16], **GREEDY)[:, 16:])


def test_half_precision_stays_near_stock() -> None:
    model = tiny().to(torch.bfloat16)
    with shared_prefix(model, DOCUMENT) as prefix:
        out = prefix.generate(IDS[:1, -5:], max_new_tokens=1, do_sample=False, **LOGITS)
    stock = logits_of(model, behind(DOCUMENT, IDS[:1, -5:]))[:, -1]
    # two bf16 roundings of O(3) numbers through two layers
    torch.testing.assert_close(out.logits[0], stock.float(), rtol=0.05, atol=0.1)


def test_scaled_frequencies_that_stand_still() -> None:
    model = tiny()
    RopeScaling(type="yarn", factor=4.0).apply(model)
    with shared_prefix(model, DOCUMENT) as prefix:
        agree(prefix, model, DOCUMENT, QUESTIONS)


# -- one copy ----------------------------------------------------------------------------------------------------------
def test_prefix_is_stored_once() -> None:
    model = tiny()
    with shared_prefix(model, DOCUMENT) as prefix:
        held = [level.keys for level in prefix.levels]
        bytes_of = {}
        for batch in (1, 64):
            cache = prefix.cache()
            prefix.generate(text(batch, 3), past_key_values=cache, **GREEDY)
            assert [level.keys for layer in cache.layers[:1] for level in layer.levels] == held  # the very tensors
            bytes_of[batch] = cache.nbytes()
            assert cache.layers[0].keys.shape[:1] == (batch,)
        # 2 layers, keys and values, 2 heads of 8 in fp32
        assert prefix.nbytes == 2 * 2 * len(DOCUMENT) * 2 * 8 * 4
        assert bytes_of[64] == 64 * bytes_of[1] == 64 * 2 * 2 * (3 + 11) * 2 * 8 * 4
        copied = copy.deepcopy(cache)
        assert copied.layers[0].levels[0] is prefix.levels[0]


def test_windows_keep_what_can_be_seen() -> None:
    with shared_prefix(tiny("gemma3"), DOCUMENT) as prefix:
        lengths = [keys.shape[2] for keys in prefix.levels[0].keys]
    assert lengths == [8, 23]  # its window is 8


def test_batch_operations_touch_the_suffix_only() -> None:
    model = tiny()
    with shared_prefix(model, DOCUMENT) as prefix:
        cache = prefix.cache()
        prefix.generate(IDS, attention_mask=MASK, past_key_values=cache, **GREEDY)
        layer = cache.layers[1]
        keys, shared = layer.keys.clone(), layer.levels[0].keys[1]  # beams are reordered in place
        cache.reorder_cache(torch.tensor([2, 0, 0]))
        same(layer.keys, keys[[2, 0, 0]])
        cache.batch_repeat_interleave(2)
        same(layer.keys, keys[[2, 2, 0, 0, 0, 0]])
        cache.batch_select_indices(torch.tensor([0]))
        same(layer.keys, keys[[2]])
        assert layer.levels[0].keys[1] is shared
        cache.crop(-3)
        assert cache.get_seq_length() == 23 + keys.shape[2] - 3
        with pytest.raises(ValueError, match="the prefix is shared and stays"):
            cache.crop(-(keys.shape[2] - 2))
        empty = prefix.cache()
        empty.reorder_cache(torch.tensor([0]))
        assert empty.get_seq_length() == 23


# -- undo --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_the_end_of_the_block_leaves_nothing(family: str) -> None:
    model = tiny(family)
    before, stock = fingerprint(model), logits_of(model, IDS)
    with shared_prefix(model, DOCUMENT) as prefix:
        assert fingerprint(model) != before
        prefix.generate(IDS, attention_mask=MASK, **GREEDY)
    assert fingerprint(model) == before
    same(logits_of(model, IDS), stock)


class Oops(Exception):
    pass


def test_an_exception_leaves_nothing() -> None:
    model = tiny()
    before = fingerprint(model)
    with pytest.raises(Oops), shared_prefix(model, DOCUMENT):
        raise Oops
    assert fingerprint(model) == before
    with shared_prefix(model, DOCUMENT) as prefix:
        cache = prefix.cache()

        def fail(*args: Any) -> None:
            raise Oops

        hook = model.model.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(Oops):
            prefix.generate(IDS, attention_mask=MASK, past_key_values=cache, **GREEDY)
        hook.remove()
        assert cache.current.step is None
        agree(prefix, model, DOCUMENT, QUESTIONS)
    assert fingerprint(model) == before
    hook = model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(Oops), shared_prefix(model, DOCUMENT):
        raise AssertionError("reading failed, so the block never begins")
    hook.remove()
    assert fingerprint(model) == before


def test_a_prefix_ends_with_its_block() -> None:
    model = tiny()
    with shared_prefix(model, DOCUMENT) as prefix:
        cache = prefix.cache()
        prefix.generate(IDS, attention_mask=MASK, past_key_values=cache, **GREEDY)
    with pytest.raises(RuntimeError, match="block that has ended"):
        prefix.generate(IDS, attention_mask=MASK)
    with pytest.raises(RuntimeError, match="block that has ended"):
        prefix.extend(IDS[:1])
    with pytest.raises(RuntimeError, match="after a shared prefix"):
        model(IDS, past_key_values=cache)


# -- models in models --------------------------------------------------------------------------------------------------
def test_text_tower_of_a_vision_language_model() -> None:
    from tests.test_vision_language import model as vision_language_model

    model = vision_language_model()
    before = fingerprint(model)
    with shared_prefix(model, DOCUMENT) as prefix:
        agree(prefix, model, DOCUMENT, QUESTIONS)
        same(prefix.generate(**GREEDY), model.generate(DOCUMENT[None], **GREEDY)[:, len(DOCUMENT) :])
    assert fingerprint(model) == before


def test_peft_models() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    before = fingerprint(model)
    with shared_prefix(model, DOCUMENT) as prefix:
        agree(prefix, model, DOCUMENT, QUESTIONS)
    assert fingerprint(model) == before


def test_an_adapter_saved_inside_the_block_loads_without_a_method(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    model = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()
    with shared_prefix(model, DOCUMENT):
        model.save_pretrained(tmp_path)
    assert not applied(PeftModel.from_pretrained(tiny(), tmp_path))


def test_offloaded_models(tmp_path: Path) -> None:
    from accelerate import cpu_offload

    stock, model = tiny(), tiny()
    cpu_offload(model, execution_device=torch.device("cpu"))
    with shared_prefix(model, DOCUMENT) as prefix:
        agree(prefix, stock, DOCUMENT, QUESTIONS)
        prefix.save(tmp_path / "document")
    with load_prefix(model, tmp_path / "document") as prefix:
        agree(prefix, stock, DOCUMENT, QUESTIONS)


@pytest.mark.parametrize("asked", [1, 4])
@pytest.mark.parametrize("family", ["llama", "qwen3", "smollm3"])
def test_rows_that_ended_early_go_on_after_a_shared_prefix(family: str, asked: int) -> None:
    model = tiny(family)
    settings = {"do_sample": False, "pad_token_id": 0}
    with shared_prefix(model, DOCUMENT) as prefix:
        width = IDS.shape[1]
        free = prefix.generate(IDS, attention_mask=MASK, max_new_tokens=12, **settings)
        end = free[0, width + 1].item()
        cache = prefix.cache()
        turn = prefix.generate(IDS, attention_mask=MASK, max_new_tokens=12, eos_token_id=end, cache=cache, **settings)
        new = turn[:, width:]
        ended = (new == end).long().cumsum(1) - (new == end).long()
        assert (ended[0] > 0).sum() > 2
        question = text(len(IDS), asked, seed=9)
        history = torch.cat([turn, question], 1)
        mask = torch.cat([MASK, (ended == 0).long(), torch.ones_like(question)], 1)
        together = prefix.generate(history, attention_mask=mask, max_new_tokens=5, cache=cache, **settings)
        for row, kept, said in zip(history, mask.bool(), together, strict=True):
            alone = prefix.generate(row[kept][None], max_new_tokens=5, **settings)
            same(said[-5:], alone[0, -5:])
