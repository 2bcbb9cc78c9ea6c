"""What `save` and `push` put together before anything is sent: tier and card, what is refused and what is mended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_longctx import XL3M, LMInfinite, RopeScaling
from hf_longctx.hub import check, repair, shim
from hf_longctx.hub.card import is_unedited
from hf_longctx.hub.draft import drafted, save_for_hub
from tests.tiny import tiny, tokenizer

METHOD = LMInfinite(n_global=2, n_local=8)
IDS = torch.arange(3, 45)[None]


@pytest.fixture(scope="module")
def dual(stock: Path) -> Path:
    return save_for_hub(stock, stock.parent / "dual", method=METHOD, base_model="owner/base").folder


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def change(folder: Path, name: str = "config.json", **fields: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


def copy_of(folder: Path, target: Path) -> Path:
    return save_for_hub(folder, target).folder


def test_the_lowest_tier_that_does_it_is_taken(stock: Path, dual: Path, tmp_path: Path) -> None:
    native = save_for_hub(stock, tmp_path / "native", method=RopeScaling(type="yarn", factor=4))
    plugin = save_for_hub(stock, tmp_path / "plugin", method=METHOD, plugin=True)
    assert (native.tier.name, plugin.tier.name, check(dual).tier.name) == ("native", "plugin", "dual")
    assert not (native.folder / shim.FILE).exists()
    assert not (plugin.folder / shim.FILE).exists()
    assert "auto_map" not in config_of(plugin.folder)
    assert "hf_longctx" in config_of(plugin.folder)
    assert config_of(native.folder)["rope_parameters"]["rope_type"] == "yarn"
    with METHOD.on(tiny()) as extended:
        expected = extended(IDS).logits
    for folder in (dual, plugin.folder):
        assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(IDS).logits, expected)


def test_a_folder_is_taken_as_it_is_at_all_levels(dual: Path, tmp_path: Path) -> None:
    (dual / "extra").mkdir(exist_ok=True)
    (dual / "extra" / "centroids.safetensors").write_bytes(b"centroids")
    (dual / ".git").mkdir(exist_ok=True)
    (dual / ".git" / "HEAD").write_text("mine")
    with drafted(dual, "you/model") as draft:
        assert (draft.folder / "extra" / "centroids.safetensors").read_bytes() == b"centroids"
        assert not (draft.folder / ".git").exists()
        assert (draft.folder / "model.safetensors").resolve() == (dual / "model.safetensors").resolve()  # no copy
        before = config_of(dual)
    assert not draft.folder.exists()
    assert config_of(dual) == before
    turned = save_for_hub(dual, tmp_path / "plugin", plugin=True)
    assert turned.tier.name == "plugin"
    assert (dual / shim.FILE).is_file()


def test_a_model_in_memory_is_drafted_with_its_tokenizer(tmp_path: Path) -> None:
    with METHOD.on(tiny()) as model:
        with pytest.raises(ValueError, match="Give tokenizer="):
            save_for_hub(model, tmp_path / "out")
        with pytest.raises(ValueError, match=r"method\.apply\(model\)"):
            save_for_hub(model, tmp_path / "out", tokenizer=tokenizer(), method=METHOD)
        assert not list(tmp_path.iterdir())
        more = tmp_path / "clusters.safetensors"
        more.write_bytes(b"clusters")
        folder = save_for_hub(model, tmp_path / "out", tokenizer=tokenizer(), files=[more]).folder
    assert check(folder).tier.name == "dual"
    assert (folder / "clusters.safetensors").read_bytes() == b"clusters"
    with pytest.raises(ValueError, match="LMInfinite: expected a model, or the name of one"):
        save_for_hub(METHOD, tmp_path / "other")


def test_the_card_says_what_each_reader_gets(dual: Path, stock: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    text = (dual / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data
    assert (data.base_model, data.library_name) == ("owner/base", "transformers")
    assert {"hf_longctx", "lm_infinite"} <= set(data.tags)
    for line in ("trust_remote_code=True)", "pip install .", "hf-longctx serve dual", '"n_local": 8', "Not measured"):
        assert line in text, line
    plugin = save_for_hub(stock, tmp_path / "plugin", method=METHOD, plugin=True).folder
    told = (plugin / "README.md").read_text(encoding="utf-8")
    assert "import hf_longctx" in told
    assert "| else | the stock model |" in told
    assert "trust_remote_code=True)" not in told
    native = save_for_hub(stock, tmp_path / "native", method=RopeScaling(type="ntk", factor=4)).folder
    assert "import hf_longctx" not in (native / "README.md").read_text(encoding="utf-8")


def test_a_card_of_ours_is_written_again_and_one_that_was_edited_stays(dual: Path, tmp_path: Path) -> None:
    plugin = save_for_hub(dual, tmp_path / "plugin", plugin=True)
    assert plugin.own_card
    assert "trust_remote_code=True)" not in (plugin.folder / "README.md").read_text()
    card = plugin.folder / "README.md"
    assert is_unedited(card.read_text())
    card.write_text(card.read_text().replace("# plugin", "# My model"))
    assert not is_unedited(card.read_text())
    again = save_for_hub(plugin.folder, tmp_path / "again")
    assert not again.own_card
    assert "# My model" in (again.folder / "README.md").read_text()


def test_results_become_a_table_and_must_say_where_they_come_from(stock: Path, tmp_path: Path) -> None:
    row = {"what": "passkeys found at 32k", "value": 0.123456, "unit": "of 1"}
    whole = {"command": "python -m x", "commit": "abc", "hardware": "CPU", "date": "2026-01-01", "rows": [row]}
    whole |= {"model": "stock", "versions": {}}
    (tmp_path / "good.json").write_text(json.dumps(whole))
    (tmp_path / "bad.json").write_text(json.dumps({**whole, "commit": ""}))
    folder = save_for_hub(stock, tmp_path / "out", results=[tmp_path / "good.json"]).folder
    text = (folder / "README.md").read_text()
    assert "| passkeys found at 32k | 0.12346 of 1 |" in text
    assert "commit abc" in text
    for name, words in (("bad.json", "does not say its commit"), ("none.json", "no such file")):
        with pytest.raises(ValueError, match=words):
            save_for_hub(stock, tmp_path / "other", results=[tmp_path / name])
    assert not (tmp_path / "other").exists()


def test_settings_of_procedures_stay_when_they_are_loaded(stock: Path, tmp_path: Path) -> None:
    folder = save_for_hub(stock, tmp_path / "xl3m", method=XL3M(segment=16, overlap=4)).folder
    assert check(folder).problems == ()
    change(folder, "generation_config.json", _from_model_config=True)
    assert "settings of xl3m, which loading drops" in check(folder).problems[0]
    with drafted(folder, "you/model") as draft:
        assert check(draft.folder).problems == ()
    assert repair(folder) == ["generation_config.json: its settings are kept when it is loaded"]
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.xl3m["segment"] == 16


def test_a_folder_that_was_saved_without_hf_longctx_is_repaired(dual: Path, tmp_path: Path) -> None:
    folder = copy_of(dual, tmp_path / "model")
    (folder / shim.FILE).unlink()
    assert "which is not there: trust_remote_code=True fails. Run `hf-longctx hub repair`" in check(folder).problems[0]
    assert repair(folder) == [f"{shim.FILE}: written"]
    assert check(folder).problems == ()
    assert check(folder).tier.name == "dual"
    assert repair(folder) == []


def test_a_config_that_was_saved_alone_leads_to_the_file_again(dual: Path, tmp_path: Path) -> None:
    folder = copy_of(dual, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.save_pretrained(folder)
    assert "auto_map does not lead to it" in check(folder).problems[0]
    assert repair(folder) == ["config.json: architectures and auto_map"]
    assert check(folder).tier.name == "dual"
    model.save_pretrained(folder)  # of the stock class
    assert "auto_map does not lead to it" in check(folder).problems[0]


def test_what_is_left_over_of_a_dual_folder_is_taken_away(dual: Path, tmp_path: Path) -> None:
    folder = copy_of(dual, tmp_path / "model")
    change(folder, hf_longctx=None, architectures=["LongCtxLlamaForCausalLM"])
    found = check(folder).problems
    assert "names no method" in found[0]
    assert "which transformers does not have" in found[1]
    assert repair(folder) == [f"{shim.FILE}: removed", "config.json: architectures and auto_map"]
    assert "auto_map" not in config_of(folder)
    assert config_of(folder)["architectures"] == ["LlamaForCausalLM"]


def test_code_of_others_in_auto_map_is_left_alone(dual: Path, tmp_path: Path) -> None:
    folder = copy_of(dual, tmp_path / "model")
    theirs = {"AutoConfig": "configuration_mine.Config"}
    change(folder, auto_map={**config_of(folder)["auto_map"], **theirs})
    assert any("configuration_mine.py, which is not there" in problem for problem in check(folder).problems)
    with pytest.raises(ValueError, match=r"configuration_mine\.py"), drafted(folder, "you/model"):
        pass
    (folder / "configuration_mine.py").write_text("class Config: ...")
    assert check(folder).problems == ()
    plugin = save_for_hub(folder, tmp_path / "plugin", plugin=True).folder
    assert config_of(plugin)["auto_map"] == theirs


BAD = {
    "an unknown field beside the methods": (
        {"hf_longctx": {"version": 1, "methods": [], "colour": "red"}},
        "unknown field 'colour'",
    ),
    "our key with an unknown field": (
        {"hf_longctx": {"version": 1, "methods": [{"name": "lm_infinite", "n_lokal": 8}]}},
        "no setting 'n_lokal'. Did you mean 'n_local'",
    ),
    "a method that this release does not have": (
        {"hf_longctx": {"version": 1, "methods": [{"name": "next_year"}]}},
        "saved by a newer hf_longctx",
    ),
    "a newer version of the entry": ({"hf_longctx": {"version": 9, "methods": []}}, "To upgrade: "),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_entry_is_refused(dual: Path, tmp_path: Path, name: str) -> None:
    fields, words = BAD[name]
    folder = copy_of(dual, tmp_path / "model")
    change(folder, **fields)
    assert words in check(folder).problems[0]
    for refused in (lambda: repair(folder), lambda: save_for_hub(folder, tmp_path / "out")):
        with pytest.raises(ValueError, match="hf_longctx") as error:
            refused()
        assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_code_that_was_edited_is_not_published_or_overwritten(dual: Path, tmp_path: Path) -> None:
    folder = copy_of(dual, tmp_path / "model")
    file = folder / shim.FILE
    edited = file.read_text().replace("from hf_longctx import models", "import os; from hf_longctx import models")
    file.write_text(edited)
    assert any("edited by hand" in problem for problem in check(folder).problems)
    for refused in (lambda: repair(folder), lambda: save_for_hub(folder, tmp_path / "out")):
        with pytest.raises(ValueError, match="edited by hand"):
            refused()
    assert file.read_text() == edited


def test_the_install_command_of_another_release_is_no_edit() -> None:
    assert shim.is_unchanged(shim.text())
    assert shim.is_unchanged(shim.text().replace(shim.INSTALL, "pip install hf-longctx"))
    for other in ('x". "', "{os.system()}", "a\nimport os", "\\"):
        assert not shim.is_unchanged(shim.text().replace(shim.INSTALL, other)), other
    assert not shim.is_unchanged("")


def test_places_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"expected the folder of a saved model"):
            check(place)
    with pytest.raises(FileNotFoundError, match=r"without a config\.json"):
        save_for_hub(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        check(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds list"):
        check(tmp_path / "empty")


def test_a_full_disk_leaves_nothing(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError, match="Free some space"):
        save_for_hub(stock, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_adapter_is_checked_as_one(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    with METHOD.on(tiny()) as model:
        model.name_or_path = str(tmp_path / "base")
        adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        adapter.save_pretrained(tmp_path / "adapter")
    report = check(tmp_path / "adapter")
    assert report.tier.name == "plugin"
    assert report.methods == (repr(METHOD),)
    assert any("a folder of this machine" in note for note in report.notes)
