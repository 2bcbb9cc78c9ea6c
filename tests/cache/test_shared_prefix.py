"""Many questions and samples behind one document: what stock `generate` gives for document and question together."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx import LMInfinite, RopeScaling, anatomy, applied, load_prefix, shared_prefix
from hf_longctx.cache.shared_prefix import Prefix
from tests.contract.registry import close, fingerprint, same
from tests.tiny import EOS, FAMILIES, MORE_FAMILIES, PAD, left_padded, logits_of, text, tiny

DOCUMENT = text(1, 23, seed=5)[0]
QUESTIONS = [text(1, n, seed=n)[0] for n in (5, 1, 7)]
IDS, MASK = left_padded(QUESTIONS)
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
LOGITS = {"return_dict_in_generate": True, "output_logits": True}


def behind(document: Tensor, ids: Tensor) -> Tensor:
    return torch.cat([document.expand(len(ids), -1), ids], 1)


def mended(setting: str) -> Any:
    """For tests of what older transformers do wrong behind any cache."""
    old = anatomy.MENDED_BEHIND_A_CACHE[setting] > anatomy._RELEASE
    return pytest.mark.skipif(old, reason="transformers is too old for it, and it is refused")


def stock_batch(model: Any, **settings: Any) -> Tensor:
    """Document and question in every row, padded in front: where stock's windows mean the same."""
    ids, mask = left_padded([torch.cat([DOCUMENT, question]) for question in QUESTIONS])
    return model.generate(ids, attention_mask=mask, **settings)


def agree(prefix: Prefix, model: Any, document: Tensor, questions: list[Tensor], **settings: Any) -> None:
    """A padded batch of questions against stock, row by row."""
    ids, mask = left_padded(questions)
    out = prefix.generate(ids, attention_mask=mask, **{**GREEDY, **settings}, **LOGITS)
    for i, question in enumerate(questions):
        stock = model.generate(torch.cat([document, question])[None], **{**GREEDY, **settings}, **LOGITS)
        same(out.sequences[i, ids.shape[1] :], stock.sequences[0, len(document) + len(question) :], "tokens")
        close(torch.stack(out.logits)[:, i], torch.stack(stock.logits)[:, 0], "logits")


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


@mended("prompt_lookup_num_tokens")
def test_prompt_lookup_takes_tokens_back_out_of_the_suffix() -> None:
    model = tiny("gemma3")
    with shared_prefix(model, DOCUMENT) as prefix:
        agree(prefix, model, DOCUMENT, QUESTIONS[:1])
        plain = prefix.generate(IDS[:1, -5:], **GREEDY)
        same(prefix.generate(IDS[:1, -5:], prompt_lookup_num_tokens=3, **GREEDY), plain)


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


@pytest.mark.parametrize("family", FAMILIES)
def test_levels_equal_one(family: str) -> None:
    model = tiny(family)
    with shared_prefix(model, DOCUMENT[:4]) as system:
        document = system.extend(DOCUMENT[4:15], chunk=4)
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
        keys, shared = layer.keys, layer.levels[0].keys[1]
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
    with pytest.raises(RuntimeError, match="behind a shared prefix"):
        model(IDS, past_key_values=cache)


# -- on disk -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_is_the_same(family: str, tmp_path: Path) -> None:
    model, file = tiny(family), tmp_path / "folder" / "document.safetensors"
    with shared_prefix(model, DOCUMENT[:9]) as system:
        prefix = system.extend(DOCUMENT[9:])
        answers = prefix.generate(IDS, attention_mask=MASK, **GREEDY)
        assert prefix.save(file) == file
    model = tiny(family, attn_implementation="eager")  # the kernel is no part of what was read
    before = fingerprint(model)
    with load_prefix(model, file, document_ids=DOCUMENT) as loaded:
        assert (loaded.length, loaded.nbytes, len(loaded.levels)) == (23, prefix.nbytes, 2)
        same(loaded.generate(IDS, attention_mask=MASK, **GREEDY), answers)
    assert fingerprint(model) == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    model, file = tiny(), tmp_path / "document.safetensors"
    with shared_prefix(model, DOCUMENT) as prefix:
        prefix.save(file)
    model.save_pretrained(tmp_path / "model")
    with load_prefix(type(model).from_pretrained(tmp_path / "model"), file, document_ids=DOCUMENT):
        pass  # the same model, in another folder
    before = fingerprint(model)

    def refused(words: str, model: Any = model, file: Path = file, **settings: Any) -> None:
        with pytest.raises(ValueError, match=words), load_prefix(model, file, **settings):
            raise AssertionError("it was not refused")

    refused("not those of document_ids", document_ids=DOCUMENT[1:])
    for other in (tiny(seed=1), tiny("qwen3"), tiny(rope_parameters={"rope_type": "default", "rope_theta": 5e3})):
        refused("read by another model", other)
    refused("read by another model", tiny().to(torch.bfloat16))
    data = bytearray(file.read_bytes())
    (tmp_path / "short").write_bytes(data[:-9])
    refused("is damaged", file=tmp_path / "short")
    (tmp_path / "text").write_text("not a prefix at all")
    refused("is damaged", file=tmp_path / "text")
    data[-3] ^= 64
    (tmp_path / "bit").write_bytes(data)
    refused("its checksum is wrong", file=tmp_path / "bit")
    refused("is no shared prefix", file=tmp_path / "model" / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="No prefix at"), load_prefix(model, tmp_path / "none"):
        pass
    assert fingerprint(model) == before


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "document.safetensors"
    with shared_prefix(tiny(), DOCUMENT) as prefix:
        prefix.save(file)
        old = file.read_bytes()

        def half(tensors: Any, path: Path, **more: Any) -> None:
            path.write_bytes(b"half")
            raise OSError("disk full")

        monkeypatch.setattr("hf_longctx.cache.prefix_file.save_file", half)
        with pytest.raises(OSError, match="disk full"):
            prefix.save(file)
    assert file.read_bytes() == old
    assert list(tmp_path.iterdir()) == [file]


# -- bad input ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.empty(1, 0, dtype=torch.long), "is empty"),
        (text(2, 5), "one prefix is shared by all rows"),
        (torch.ones(5), "expected a tensor of token ids"),
        ([1, 2, 3], "list, expected a tensor of token ids"),
    ],
)
def test_bad_documents_are_refused(ids: Any, words: str) -> None:
    model = tiny()
    before = fingerprint(model)
    with pytest.raises(ValueError, match=words), shared_prefix(model, ids):
        pass
    assert fingerprint(model) == before


def test_bad_questions_are_refused() -> None:
    with shared_prefix(tiny(), DOCUMENT) as prefix:
        other = prefix.extend(DOCUMENT)

        def refused(words: str, *args: Any, **settings: Any) -> None:
            with pytest.raises(ValueError, match=words):
                prefix.generate(*args, **settings)

        refused("there is nothing in it", IDS[:, :0])
        refused("there is nothing in it", IDS[:0])
        refused("a question a row", DOCUMENT)
        refused("a question a row", "what is it?")
        refused(f"hold the padding token {PAD}", IDS)
        refused("expected that of input_ids", IDS, MASK[:, 1:])
        refused("Pad on the left", IDS.flip(1), MASK.flip(1))
        refused("belong to input_ids", None, MASK)
        refused("inputs_embeds: a shared prefix", IDS, MASK, inputs_embeds=torch.ones(3, 7, 32))
        refused("use_cache=False", IDS, MASK, use_cache=False)
        refused("no cache of this prefix", IDS, MASK, past_key_values=other.cache())
        cache = prefix.cache()
        prefix.generate(IDS, MASK, past_key_values=cache, max_new_tokens=3)
        refused("has 3 rows and input_ids 1", IDS[:1, -5:], past_key_values=cache)
        refused("Give everything so far", IDS, MASK, past_key_values=cache)


def test_models_that_cannot_be_exact_are_refused() -> None:
    def refused(words: str, model: Any) -> None:
        before = fingerprint(model)
        with pytest.raises(ValueError, match=words), shared_prefix(model, DOCUMENT):
            raise AssertionError("it was not refused")
        assert fingerprint(model) == before

    model = tiny()
    LMInfinite(n_local=8).apply(model)
    refused("keeps un-rotated keys", model)
    refused("changes its frequencies", tiny(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}))
    refused("train mode", tiny().train())
    refused("cannot generate", tiny().model)
    refused("attn_implementation='flex_attention'", tiny(attn_implementation="flex_attention"))
    model = tiny()
    with shared_prefix(model, DOCUMENT) as prefix:
        with pytest.raises(ValueError, match=r"Use prefix\.extend"), shared_prefix(model, DOCUMENT):
            pass
        with pytest.raises(ValueError, match=r"already that of shared_prefix\(...\)"):
            LMInfinite(n_local=8).apply(model)
        with RopeScaling(type="yarn", factor=4.0).on(model), pytest.raises(RuntimeError, match="applied after"):
            prefix.generate(IDS, attention_mask=MASK, **GREEDY)
        agree(prefix, model, DOCUMENT, QUESTIONS)
    assert applied(model) == []


def test_what_an_old_transformers_reads_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anatomy, "_RELEASE", (5, 17))
    with shared_prefix(tiny(), DOCUMENT) as prefix:
        for setting in ("prefill_chunk_size", "prompt_lookup_num_tokens"):
            with pytest.raises(ValueError, match=f"{setting}=3: transformers .* Leave it out, or install"):
                prefix.generate(IDS[:1, -5:], **{setting: 3}, **GREEDY)
        config = copy.copy(prefix.model.generation_config)
        config.prefill_chunk_size = 3
        with pytest.raises(ValueError, match="prefill_chunk_size=3"):
            prefix.generate(IDS[:1, -5:], generation_config=config)


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


def test_offloaded_models(tmp_path: Path) -> None:
    from accelerate import cpu_offload

    stock, model = tiny(), tiny()
    cpu_offload(model, execution_device=torch.device("cpu"))
    with shared_prefix(model, DOCUMENT) as prefix:
        agree(prefix, stock, DOCUMENT, QUESTIONS)
        prefix.save(tmp_path / "document")
    with load_prefix(model, tmp_path / "document") as prefix:
        agree(prefix, stock, DOCUMENT, QUESTIONS)
