"""Checkpoints that cannot be read whole and safely are refused with the reason."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_longctx.clip import stretch_checkpoint, stretch_positions
from tests.clip.tiny import clip, saved


def test_weights_that_cannot_be_had_whole_and_safely_are_named(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    source = saved(clip(), tmp_path / "source")
    folders = {
        name: Path(shutil.copytree(source, tmp_path / name)) for name in ("cut", "other", "less", "code", "json")
    }
    weights = (source / "model.safetensors").read_bytes()
    (folders["cut"] / "model.safetensors").write_bytes(weights[:1000])
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 248
    (folders["other"] / "config.json").write_text(json.dumps(config))
    state = load_file(source / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, folders["less"] / "model.safetensors", {"format": "pt"})
    (folders["code"] / "model.safetensors").unlink()
    torch.save({"a": Evil()}, folders["code"] / "pytorch_model.bin")
    (folders["json"] / "config.json").write_text("{")
    for name, error, says in (
        ("cut", ValueError, "weights are cut short or damaged"),
        ("other", ValueError, r"do not belong together: .*position_embedding.weight is \[77, 64\] and not \[248, 64\]"),
        ("less", ValueError, "do not belong together: text_projection.weight is missing"),
        ("code", ValueError, "code that loading would run.*refused.*safetensors"),
        ("json", OSError, "the config of a model could not be read"),
    ):
        for call in (stretch_positions, lambda folder: stretch_checkpoint(folder, tmp_path / "out")):
            with pytest.raises(error, match=says):
                call(folders[name])
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
