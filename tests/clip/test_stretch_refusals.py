"""What cannot be stretched is refused, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPModel

from hf_longctx.clip import stretch_checkpoint, stretch_positions
from tests.clip.tiny import (
    clip,
    saved,
    text_tower,
    tokenizer,
)
from tests.tiny import tiny


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    config = getattr(model, "config", None)
    buffers = {n: b.tolist() for n, b in model.named_buffers()}
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    return config.to_dict() if config is not None else None, buffers, weights


def unchanged(model: nn.Module, before: tuple[Any, ...]) -> bool:
    config, buffers, weights = snapshot(model)
    return (config, buffers) == before[:2] and all(torch.equal(weights[n], w) for n, w in before[2].items())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"keep": 78}, "keep=78: expected 0 to 76"),
        ({"ratio": 0}, "ratio=0: expected 2 or more"),
        ({"ratio": "4"}, "ratio='4': expected a whole number"),
        ({"keep": -3}, "keep=-3"),
    ],
)
def test_wrong_settings_change_nothing(settings: dict[str, Any], says: str) -> None:
    model = clip()
    before = snapshot(model)
    with pytest.raises(ValueError, match=says):
        stretch_positions(model, **settings)
    assert unchanged(model, before)


def test_what_is_no_clip_is_refused_and_left_alone() -> None:
    llama = tiny()
    vision = clip().vision_model
    for model in (llama, vision, nn.Linear(2, 2)):
        before = snapshot(model)
        with pytest.raises(ValueError, match="has 0 modules with a token_embedding and a position_embedding"):
            stretch_positions(model)
        assert unchanged(model, before)
    with pytest.raises(ValueError, match="CLIPTokenizer: expected a CLIP"):
        stretch_positions(tokenizer())
    both = nn.ModuleList([text_tower(), text_tower()])
    with pytest.raises(ValueError, match="has 2 modules"):
        stretch_positions(both)


def test_config_that_says_another_length_is_refused() -> None:
    model = clip()
    model.config.text_config.max_position_embeddings = 76
    before = snapshot(model)
    with pytest.raises(ValueError, match="no config of it has max_position_embeddings=77"):
        stretch_positions(model)
    assert unchanged(model, before)


def test_stretched_models_are_not_stretched_again(tmp_path: Path) -> None:
    model = stretch_positions(clip())
    model.save_pretrained(tmp_path)
    with torch.no_grad():  # as training would
        model.text_model.embeddings.position_embedding.weight.add_(torch.randn(248, 64))
    unmarked = CLIPModel.from_pretrained(tmp_path)
    del unmarked.config.text_config.position_stretch
    for one, says in (
        (model, "was stretched before .from=77, keep=20, ratio=4"),
        (CLIPModel.from_pretrained(tmp_path), "from=77, keep=20, ratio=4"),
        (unmarked, "was stretched before. Stretch"),
    ):
        before = snapshot(one)
        with pytest.raises(ValueError, match=says):
            stretch_positions(one)
        assert unchanged(one, before)


def test_bad_folders_are_named_before_anything_is_written(tmp_path: Path) -> None:
    source = saved(clip(), tmp_path / "source")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for given, error, says in (
        (tmp_path / "empty", FileNotFoundError, "without a config.json"),
        (tmp_path / "none", FileNotFoundError, "there is no such folder"),
        (tmp_path / "file", ValueError, "is a file"),
        (7, ValueError, "int: expected a folder"),
    ):
        with pytest.raises(error, match=says):
            stretch_checkpoint(given, tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keep=90"):
        stretch_checkpoint(source, tmp_path / "out", keep=90)
    with pytest.raises(ValueError, match="is not empty"):
        stretch_checkpoint(source, source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "source"]
