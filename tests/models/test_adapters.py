"""PEFT on our classes, and classes that somebody derives from ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_longctx import applied, models
from hf_longctx.hub import shim
from tests.models.conftest import IDS, METHOD, Folders, tokens_of
from tests.tiny import logits_of

peft: Any = pytest.importorskip("peft")


def lora(base: Any) -> Any:
    torch.manual_seed(3)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(base, config).eval()


def test_an_adapter_on_a_dual_base(folders: Folders, tmp_path: Path) -> None:
    stock = LlamaForCausalLM.from_pretrained(folders.stock)
    METHOD.apply(stock)
    expected = lora(stock)
    model = lora(models.LongCtxLlamaForCausalLM.from_pretrained(folders.dual))
    assert torch.equal(logits_of(model, IDS), logits_of(expected, IDS))
    model.save_pretrained(tmp_path / "adapter")
    assert shim.FILE not in {file.name for file in (tmp_path / "adapter").iterdir()}
    auto = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
    assert type(auto) is models.LongCtxLlamaForCausalLM
    base = AutoModelForCausalLM.from_pretrained(folders.dual, trust_remote_code=True)
    for loaded in (auto, peft.PeftModel.from_pretrained(base, tmp_path / "adapter")):
        assert [patch.method for patch in applied(loaded)] == [METHOD]
        assert torch.equal(logits_of(loaded, IDS), logits_of(expected, IDS))
        assert torch.equal(loaded.generate(IDS, max_new_tokens=4, do_sample=False), tokens_of(expected)[:, :-2])
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", trust_remote_code=True)
    assert type(loaded) is models.LongCtxLlamaForCausalLM
    torch.testing.assert_close(logits_of(loaded, IDS), logits_of(expected, IDS), atol=1e-5, rtol=1e-5)


def test_an_adapter_names_the_stock_class(folders: Folders, tmp_path: Path) -> None:
    base = models.LongCtxLlamaForCausalLM.from_pretrained(folders.dual)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    expected = logits_of(model.eval(), IDS)
    model.save_pretrained(tmp_path)
    named = json.loads((tmp_path / "adapter_config.json").read_text())["auto_mapping"]  # written without task_type
    assert (named["base_model_class"], named["parent_library"]) == ("LlamaForCausalLM", LlamaForCausalLM.__module__)
    loaded = peft.AutoPeftModel.from_pretrained(tmp_path)
    assert [patch.method for patch in applied(loaded)] == [METHOD]
    assert torch.equal(logits_of(loaded.eval(), IDS), expected)


def test_an_adapter_of_transformers_own(folders: Folders, tmp_path: Path) -> None:
    model = models.LongCtxLlamaForCausalLM.from_pretrained(folders.dual)
    torch.manual_seed(3)
    try:
        model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    except ValueError as error:
        if "version of PEFT" not in str(error):
            raise
        pytest.skip(str(error))
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not {"config.json", shim.FILE} & {file.name for file in tmp_path.iterdir()}
    base = models.LongCtxLlamaForCausalLM.from_pretrained(folders.dual)
    base.load_adapter(tmp_path)
    assert torch.equal(logits_of(base, IDS), logits_of(model.eval(), IDS))


class Mine(models.LongCtxLlamaForCausalLM):  # type: ignore[name-defined, misc]
    """A class of a user."""


class OwnConfig(LlamaConfig):
    """A config that Auto classes do not know."""

    model_type = "mine_of_a_test"


class OwnKind(models.LongCtxLlamaForCausalLM):  # type: ignore[name-defined, misc]
    """A class of a user with a config of its own."""

    config_class = OwnConfig


def test_a_class_derived_from_ours(folders: Folders, tmp_path: Path) -> None:
    """Saved as one derived from the stock class: its own name, and with trust the class that it was derived from."""
    model = Mine.from_pretrained(folders.stock, methods=METHOD)
    assert torch.equal(logits_of(model, IDS), folders.extended)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Mine"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(loaded) is models.LongCtxLlamaForCausalLM
    assert torch.equal(logits_of(loaded, IDS), folders.extended)


def test_a_derived_class_with_a_config_of_its_own(folders: Folders, tmp_path: Path) -> None:
    config = OwnConfig.from_dict(LlamaConfig.from_pretrained(folders.stock).to_dict())
    model = OwnKind.from_pretrained(folders.stock, config=config, methods=METHOD)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "mine_of_a_test"
    assert "auto_map" not in saved
    assert torch.equal(logits_of(OwnKind.from_pretrained(tmp_path), IDS), folders.extended)


def test_a_derived_class_that_is_to_be_copied(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`register_for_auto_class` is the user's word: the folder has the user's file, and not ours."""
    monkeypatch.setattr(Mine, "_auto_class", None)
    Mine.register_for_auto_class("AutoModelForCausalLM")
    assert Mine._auto_class == "AutoModelForCausalLM"
    Mine.from_pretrained(folders.stock, methods=METHOD).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] == {"AutoModelForCausalLM": "test_adapters.Mine"}
    names = {file.name for file in tmp_path.iterdir()}
    assert "test_adapters.py" in names
    assert shim.FILE not in names
