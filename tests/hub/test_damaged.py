"""Files that nobody could load are told before anything is sent; whole ones pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hf_longctx.hub.damaged import refuse_damaged
from hf_longctx.hub.draft import save_for_hub
from hf_longctx.hub.outgoing import files_of
from tests.tiny import tiny, tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny().save_pretrained(folder, max_shard_size="20KB")
    tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("---\ntags:\n- a\n---\n# A model\n")
    refuse_damaged(files_of(folder))
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(ValueError, match=r"Save the model|save the model|delete README") as caught:
        save_for_hub(folder, folder.parent / "out")
    assert not (folder.parent / "out").exists()
    return str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_settings(model: Path, name: str, content: str) -> None:
    (model / name).write_text(content)
    assert refused(model).startswith(f"{name} {'holds a list' if content == '[]' else 'is not JSON'}")


def test_weights_that_are_cut_off(model: Path) -> None:
    part = sorted(model.glob("*.safetensors"))[0]
    whole = part.read_bytes()
    assert load_file(part)
    for wrong in (b"", whole[:7], whole[:100], whole[:-1], whole + b"x", b"\xff" * 64):
        part.write_bytes(wrong)
        assert f"{part.name} is cut off or damaged: it has {len(wrong):,} bytes" in refused(model)
    part.write_bytes(whole)
    refuse_damaged(files_of(model))


def test_a_part_of_the_weights_that_is_not_there(model: Path) -> None:
    parts = sorted(model.glob("*.safetensors"))
    parts[1].unlink()
    told = refused(model)
    assert f"names {parts[1].name}, which is not there (1 of {len(parts)} parts" in told
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": []}))
    refuse_damaged(files_of(model))  # of another form: transformers says what it needs


def test_metadata_of_a_card(model: Path) -> None:
    (model / "README.md").write_text("---\ntags: [a, b\nlicense: x\n---\n# A model\n")
    assert refused(model).startswith("README.md: its metadata, between the two lines ---, is not valid YAML at line 3")
    for fine in ("# A model\n", "", "---\n"):
        (model / "README.md").write_text(fine)
        refuse_damaged(files_of(model))
