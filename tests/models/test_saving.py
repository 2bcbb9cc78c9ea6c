"""What our classes write: a dual-mode folder while the model has methods, the stock class's folder otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_longctx import extend_config, models, undo
from hf_longctx.hub import shim
from tests.models.conftest import IDS, KEY, METHOD, Folders, tokens_of
from tests.tiny import config_of, logits_of

AUTO = {
    "AutoModel": "modeling_hf_longctx.LongCtxLlamaModel",
    "AutoModelForCausalLM": "modeling_hf_longctx.LongCtxLlamaForCausalLM",
    "AutoModelForQuestionAnswering": "modeling_hf_longctx.LongCtxLlamaForQuestionAnswering",
    "AutoModelForSequenceClassification": "modeling_hf_longctx.LongCtxLlamaForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_hf_longctx.LongCtxLlamaForTokenClassification",
}


def load(path: Path, **kwargs: Any) -> Any:
    return models.LongCtxLlamaForCausalLM.from_pretrained(path, **kwargs)


def config_in(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def is_dual(folder: Path) -> bool:
    """Both parts or neither."""
    found = any(shim.is_ours(place) for place in config_in(folder).get("auto_map", {}).values())
    assert found == (shim.FILE in files(folder))
    assert not any(name.startswith("LongCtx") for name in config_in(folder)["architectures"])
    return found


@pytest.mark.floor
def test_the_files_and_fields_of_a_dual_folder(folders: Folders, tmp_path: Path) -> None:
    stock = LlamaForCausalLM.from_pretrained(folders.stock)
    METHOD.apply(stock)
    stock.save_pretrained(tmp_path / "stock")
    model = load(folders.stock, methods=METHOD)
    model.save_pretrained(tmp_path / "ours")
    assert files(tmp_path / "ours") == files(tmp_path / "stock") | {shim.FILE}
    expected, found = config_in(tmp_path / "stock"), config_in(tmp_path / "ours")
    assert {name for name, place in found["auto_map"].items() if AUTO.get(name) == place} == set(AUTO)
    assert found == expected | {"auto_map": found["auto_map"]}
    assert found["hf_longctx"] == KEY
    assert (tmp_path / "ours" / shim.FILE).read_text() == shim.text()
    # what the model's own config says is what the stock class leaves there
    assert model.config.architectures == stock.config.architectures == ["LlamaForCausalLM"]
    assert "auto_map" not in vars(model.config)
    model.config.save_pretrained(tmp_path / "alone")
    assert config_in(tmp_path / "alone") == expected


def test_without_a_method_the_stock_folder_byte_for_byte(folders: Folders, tmp_path: Path) -> None:
    LlamaForCausalLM.from_pretrained(folders.stock).save_pretrained(tmp_path / "stock")
    undone = load(folders.dual)
    undo(undone)
    for name, model in {
        "none": load(folders.stock),
        "taken out": load(folders.dual, methods=()),
        "undone": undone,
    }.items():
        model.save_pretrained(tmp_path / name)
        assert files(tmp_path / name) == files(tmp_path / "stock")
        for file in files(tmp_path / "stock"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "stock" / file).read_bytes(), (name, file)


def test_over_folders_of_the_other_kind(folders: Folders, tmp_path: Path) -> None:
    model = load(folders.dual)
    LlamaForCausalLM.from_pretrained(folders.stock).save_pretrained(tmp_path)
    for _ in range(2):
        model.save_pretrained(tmp_path)
        assert is_dual(tmp_path)
        assert torch.equal(logits_of(load(tmp_path), IDS), folders.extended)
    undo(model)
    model.save_pretrained(tmp_path)
    assert not is_dual(tmp_path)
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path), IDS), folders.plain)


def test_a_file_that_was_edited_is_kept(folders: Folders, tmp_path: Path) -> None:
    load(folders.dual).save_pretrained(tmp_path)
    (tmp_path / shim.FILE).write_bytes(b"print('mine')  # \xff\n")
    load(folders.stock).save_pretrained(tmp_path)
    assert (tmp_path / shim.FILE).read_bytes() == b"print('mine')  # \xff\n"
    assert "auto_map" not in config_in(tmp_path)


def test_in_parts_as_a_variant_and_from_a_state_dict(folders: Folders, tmp_path: Path) -> None:
    model = load(folders.dual)
    model.save_pretrained(tmp_path / "parts", max_shard_size="8KB")
    assert "model.safetensors.index.json" in files(tmp_path / "parts")
    model.save_pretrained(tmp_path / "variant", variant="fp32")
    other = LlamaForCausalLM(config_of("llama"))
    model.save_pretrained(tmp_path / "state", state_dict=other.state_dict())
    METHOD.apply(other.eval())
    for name, kwargs, expected in (
        ("parts", {}, folders.extended),
        ("variant", {"variant": "fp32"}, folders.extended),
        ("state", {}, logits_of(other, IDS)),
    ):
        assert is_dual(tmp_path / name)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name, trust_remote_code=True, **kwargs)
        assert type(loaded) is models.LongCtxLlamaForCausalLM
        assert torch.equal(logits_of(loaded, IDS), expected)


def test_one_process_writes(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folders.dual)
    model.save_pretrained(tmp_path / "first", is_main_process=False)
    model.save_pretrained(tmp_path / "second", False)
    assert not any(shim.FILE in files(tmp_path / name) for name in ("first", "second"))
    # a sharded model decides by its own rank, whatever the caller says
    monkeypatch.setattr(type(model), "should_save_on_this_rank", lambda self, is_main_process: False)
    (tmp_path / "config.json").write_text('{"half of it')
    model.save_pretrained(tmp_path)
    assert shim.FILE not in files(tmp_path)


def test_it_is_published_complete_or_not(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"push_to_hub\(repo_id\)"):
        load(folders.dual).save_pretrained(tmp_path / "new", push_to_hub=True)
    with pytest.raises(ValueError, match=r"push_to_hub\(repo_id\)"):
        load(folders.dual).save_pretrained(tmp_path / "new", True, None, True)
    assert not (tmp_path / "new").exists()


def test_the_callers_config_is_not_changed(folders: Folders, tmp_path: Path) -> None:
    config = extend_config(folders.stock, METHOD)
    before = config.to_dict()
    load(folders.stock, config=config).save_pretrained(tmp_path)
    assert config.to_dict() == before


def test_a_place_without_a_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("no JSON")
    for place in (tmp_path, tmp_path / "nowhere", ""):
        with pytest.raises(OSError, match=r"no config could be read from it .*Give a folder") as told:
            extend_config(place, METHOD)
        assert str(told.value).startswith(repr(str(place)))


def test_the_stock_class_saves_a_plugin_folder(folders: Folders, tmp_path: Path) -> None:
    """Not an `auto_map` to a file that is not there, in the style of folders and of older ids alike."""
    config = LlamaConfig.from_pretrained(folders.dual)
    hub = {name: f"someone/model--{place}" for name, place in config.auto_map.items()}
    config.auto_map = {**hub, "AutoConfig": "configuration_other.OtherConfig"}
    for name, kwargs in {"folder": {}, "id": {"config": config}}.items():
        stock = LlamaForCausalLM.from_pretrained(folders.dual, **kwargs)
        assert type(stock) is LlamaForCausalLM
        stock.save_pretrained(tmp_path / name)
        assert not is_dual(tmp_path / name)
        assert config_in(tmp_path / name)["hf_longctx"] == KEY
        assert torch.equal(logits_of(LlamaForCausalLM.from_pretrained(tmp_path / name), IDS), folders.extended)
    assert config_in(tmp_path / "id")["auto_map"] == {"AutoConfig": "configuration_other.OtherConfig"}
    load(folders.dual, config=config).save_pretrained(tmp_path / "ours")
    saved = config_in(tmp_path / "ours")["auto_map"]
    assert saved["AutoConfig"] == "configuration_other.OtherConfig"
    assert saved["AutoModelForCausalLM"] == AUTO["AutoModelForCausalLM"]


def test_more_tokens(folders: Folders, tmp_path: Path) -> None:
    stock = LlamaForCausalLM.from_pretrained(folders.stock)
    model = load(folders.dual)
    for each in (stock, model):
        torch.manual_seed(1)
        each.resize_token_embeddings(70)
    METHOD.apply(stock)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.config.vocab_size == 70
    assert torch.equal(logits_of(loaded, IDS), logits_of(stock, IDS))
    assert torch.equal(tokens_of(loaded), tokens_of(stock))


def test_trainer_saves_with_the_class(folders: Folders, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model = load(folders.dual)
    arguments = TrainingArguments(output_dir=str(tmp_path / "run"), report_to=[], use_cpu=True)
    Trainer(model=model, args=arguments).save_model(str(tmp_path / "saved"))
    assert is_dual(tmp_path / "saved")
    assert torch.equal(logits_of(load(tmp_path / "saved"), IDS), folders.extended)
