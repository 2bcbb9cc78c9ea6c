"""A checkpoint that is written over another: the old one stays until the new one is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_longctx.hub.save import check_target, save
from tests.tiny import tiny, tokenizer


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_checkpoint_is_not_lost_to_one_that_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    save(tiny(seed=0), tokenizer(), tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("mine")
    before = contents(tmp_path / "out")

    def breaking(self: Any, folder: Path, **_: Any) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedModel.save_pretrained", breaking)
        with pytest.raises((KeyboardInterrupt, OSError)):
            save(tiny(seed=1), tokenizer(), tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before
    save(tiny(seed=1), tokenizer(), tmp_path / "out", overwrite=True)
    after = contents(tmp_path / "out")
    assert after.keys() == before.keys()
    assert after["mine.txt"] == b"mine"
    assert after["model.safetensors"] != before["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_weights_in_other_parts_are_not_loaded_instead(tmp_path: Path) -> None:
    model = tiny(seed=1)
    save(tiny(seed=0), tokenizer(), tmp_path / "out")
    stock = type(model).save_pretrained
    model.save_pretrained = lambda folder: stock(model, folder, max_shard_size="10KB")
    save(model, tokenizer(), tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    ids = torch.arange(3, 20)[None]
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits, model(ids).logits)
    save(tiny(seed=0), tokenizer(), tmp_path / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "out").glob("model*")] == ["model.safetensors"]


def test_where_nothing_can_be_written_is_known_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file' is a file; expected the name of a folder"):
        check_target(tmp_path / "file" / "sub", overwrite=False)
    with pytest.raises(OSError, match="a file in the way"):
        check_target(tmp_path / "file" / "sub" / "sub", overwrite=False)
    check_target(tmp_path / "a" / "b", overwrite=False)
    assert not (tmp_path / "a").exists()


def test_a_folder_may_be_a_link_or_where_another_disk_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither can be replaced by a folder with another name, as a new one is made."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    assert save(tiny(seed=0), tokenizer(), tmp_path / "link") == tmp_path / "link"
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "to_come").symlink_to(tmp_path / "new")
    save(tiny(seed=0), tokenizer(), tmp_path / "to_come")
    volume = tmp_path / "volume"
    volume.mkdir()
    number = volume.stat().st_ino
    with monkeypatch.context() as mounted:
        mounted.setattr("os.path.ismount", lambda path: Path(path) == volume)
        save(tiny(seed=0), tokenizer(), volume)
    assert volume.stat().st_ino == number
    assert contents(tmp_path / "disk") == contents(tmp_path / "new") == contents(volume)
    assert "config.json" in contents(volume)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link", "new", "to_come", "volume"]


def test_an_adapter_that_was_there_is_not_put_on_top_of_another_model(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    def adapted() -> Any:
        return get_peft_model(tiny(seed=0), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))

    out, model = tmp_path / "out", tiny(seed=1)
    save(adapted(), tokenizer(), out)
    before = contents(out)
    assert "adapter_config.json" in before
    assert "config.json" not in before
    save(model, tokenizer(), out, overwrite=True)
    ids = torch.arange(3, 20)[None]
    assert torch.equal(AutoModelForCausalLM.from_pretrained(out)(ids).logits, model(ids).logits)
    assert not [*out.glob("adapter*")]
    there = contents(out)
    with pytest.raises(ValueError, match="out' holds a model, beside which an adapter would not be seen"):
        save(adapted(), tokenizer(), out, overwrite=True)
    assert contents(out) == there
