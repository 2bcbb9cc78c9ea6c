"""Shared prefixes on disk, and everything that is refused, with the reason."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from hf_longctx import LMInfinite, RopeScaling, applied, load_prefix, shared_prefix
from hf_longctx.sharing.file import FORMAT
from hf_longctx.upstream import versions
from tests.contract.registry import fingerprint, same
from tests.sharing.prefixes import DOCUMENT, GREEDY, IDS, MASK, QUESTIONS, agree
from tests.tiny import FAMILIES, PAD, text, tiny


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
    refused("is no shared prefix", file=tmp_path / "text")  # somebody's own: nothing is said of deleting it
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

        monkeypatch.setattr("hf_longctx.sharing.file.save_file", half)
        with pytest.raises(OSError, match="disk full"):
            prefix.save(file)
    assert file.read_bytes() == old
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (None, "is damaged .*no JSON"),
        ([], "is damaged .*by a list"),
        ({"methods": None}, "is damaged .*methods=None"),
        ({"checksum": None}, "is damaged .*checksum=None"),
        ({"levels": "1"}, "is damaged .*levels='1'"),
        ({"levels": 0}, "is damaged .*levels=0"),
        ({"levels": 3}, "not those of 3 levels of 2 layers"),
    ],
)
def test_a_header_that_is_not_as_it_was_written(changed: Any, words: str, tmp_path: Path) -> None:
    model, file = tiny(), tmp_path / "document.safetensors"
    with shared_prefix(model, DOCUMENT) as prefix:
        prefix.save(file)
    with safe_open(file, framework="pt") as opened:
        about = json.loads(opened.metadata()[FORMAT])
    about = {**about, **changed} if isinstance(changed, dict) else changed
    told = "{broken" if changed is None else json.dumps(about)
    save_file(load_file(file), file, metadata={FORMAT: told})
    with pytest.raises(ValueError, match=words), load_prefix(model, file):
        raise AssertionError("it was not refused")
    assert applied(model) == []


def test_places_that_take_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, file = tiny(), tmp_path / "document.safetensors"
    with shared_prefix(model, DOCUMENT) as prefix:
        with pytest.raises(IsADirectoryError, match="is a folder: expected the name of a file"):
            prefix.save(tmp_path)
        prefix.save(file)
        with pytest.raises(FileExistsError, match="a folder for prefixes cannot be made here"):
            prefix.save(file / "document.safetensors")

        def full(*args: Any, **more: Any) -> None:
            raise SafetensorError("No space left on device")

        monkeypatch.setattr("hf_longctx.sharing.file.save_file", full)
        with pytest.raises(OSError, match=r"could not be written to .*No space left on device"):
            prefix.save(file)
    with pytest.raises(IsADirectoryError, match="is a folder"), load_prefix(model, tmp_path):
        pass

    def denied(path: Path, *args: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(PermissionError, match=file.name), load_prefix(model, file):
        pass


# -- bad input ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.empty(1, 0, dtype=torch.long), "is empty"),
        (text(2, 5), "one prefix is shared by all rows"),
        (torch.ones(5), "expected a tensor of token ids"),
        ([1, 2, 3], "list, expected a tensor of token ids"),
        (torch.tensor([1, 2, 10**6]), "document_ids has the token id 1000000"),
        (torch.tensor([1, -100]), "document_ids has the token id -100"),
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
        refused("a question per row", DOCUMENT)
        refused("a question per row", "what is it?")
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
        with pytest.raises(ValueError, match=r"shared_prefix\(...\) is already applied"):
            LMInfinite(n_local=8).apply(model)
        with RopeScaling(type="yarn", factor=4.0).on(model), pytest.raises(RuntimeError, match="applied after"):
            prefix.generate(IDS, attention_mask=MASK, **GREEDY)
        agree(prefix, model, DOCUMENT, QUESTIONS)
    assert applied(model) == []


def test_what_transformers_reads_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with shared_prefix(tiny(), DOCUMENT) as prefix:
        never: dict[str, Any] = {"prompt_lookup_num_tokens": 3, "assistant_early_exit": 1, "assistant_model": tiny()}
        for setting, value in never.items():
            with pytest.raises(ValueError, match=rf"{setting}=\w+: transformers .* Leave it out\.$"):
                prefix.generate(IDS[:1, -5:], **{setting: value}, **GREEDY)
        monkeypatch.setattr(versions, "RELEASE", (5, 17))
        with pytest.raises(ValueError, match=r"prefill_chunk_size=3: transformers .* Leave it out, or install"):
            prefix.generate(IDS[:1, -5:], prefill_chunk_size=3, **GREEDY)
        config = copy.copy(prefix.model.generation_config)
        config.prefill_chunk_size = 3
        with pytest.raises(ValueError, match="prefill_chunk_size=3"):
            prefix.generate(IDS[:1, -5:], generation_config=config)
