"""Long-CLIP's training: the same on two processes and after an interruption; adapters; wrong settings and data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx.clip import FineTuning, Pair, finetune
from tests.clip import two
from tests.clip.tiny import siglip, text_tower

SETTINGS: dict[str, Any] = {"batch": 16, "epochs": 3, "learning_rate": 1e-3, "components": 8, "save_every": 2}


def weights(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def whole(scene_files: Path) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """An uninterrupted training's weights and losses: two steps an epoch."""
    trained = finetune(*two.parts(scene_files), FineTuning(**SETTINGS), scene_files / "whole")
    return weights(trained), logged(scene_files / "whole")


def test_it_learns_and_keeps_the_first_rows(whole: Any, scene_files: Path) -> None:
    after, log = whole
    before = weights(two.parts(scene_files)[0])
    table = "text_model.embeddings.position_embedding.weight"
    assert torch.equal(after[table][:20], before[table][:20])
    assert not torch.equal(after[table][20:], before[table][20:])
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert log[-1]["long"] + log[-1]["short"] < log[0]["long"] + log[0]["short"]


def test_two_processes_train_as_one(two_processes: list[dict[str, Any]], scene_files: Path) -> None:
    alone = two.training(scene_files)
    for one in two_processes:
        for name, weight in one["training"].items():
            # a key's bias moves all scores of a query alike: its gradient is rounding, which Adam makes steps of
            if not name.endswith("k_proj.bias"):
                # sums in another order, through a few steps of Adam
                torch.testing.assert_close(weight, alone[name], rtol=1e-3, atol=2e-4, msg=name)


def test_resumed_training_equals_an_uninterrupted_one(whole: Any, scene_files: Path) -> None:
    out, settings = scene_files / "cut", FineTuning(**SETTINGS)
    finetune(*two.parts(scene_files), settings, out, stop_after=3)
    with pytest.raises(ValueError, match=r"holds a training. Resume it"):
        finetune(*two.parts(scene_files), settings, out)
    with pytest.raises(ValueError, match=r"is another run: learning_rate was 0\.001 and is 0\.1"):
        finetune(*two.parts(scene_files), FineTuning(**SETTINGS | {"learning_rate": 0.1}), out, resume=True)
    # steps after the last state, of a run that was killed
    with open(out / "log.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps({"step": 4, "of": 6, "long": 0.0, "short": 0.0}) + "\n")
    resumed = finetune(*two.parts(scene_files), settings, out, resume=True)
    assert logged(out) == whole[1]
    for name, weight in weights(resumed).items():
        assert torch.equal(weight, whole[0][name]), name
    assert len(list(out.glob("state-*"))) == 1


def test_adapters_are_merged_into_a_stock_model(scene_files: Path, tmp_path: Path) -> None:
    parts = two.parts(scene_files)
    before = weights(parts[0])
    trained = finetune(*parts, FineTuning(**SETTINGS | {"lora": 2, "epochs": 2}), tmp_path)
    after = weights(trained)
    assert after.keys() == before.keys()
    assert not torch.equal(
        after["text_model.encoder.layers.0.self_attn.q_proj.weight"],
        before["text_model.encoder.layers.0.self_attn.q_proj.weight"],
    )
    assert torch.equal(
        after["text_model.embeddings.token_embedding.weight"], before["text_model.embeddings.token_embedding.weight"]
    )
    table = "text_model.embeddings.position_embedding.weight"
    assert torch.equal(after[table][:20], before[table][:20])
    assert not torch.equal(after[table][20:], before[table][20:])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch": 33}, "batch=33 cannot carry components=32: expected at least 34 pairs"),
        ({"learning_rate": "1e-6"}, "YAML reads 1e-6 as a word"),
        ({"epochs": 0}, "epochs=0: expected a whole number from 1"),
        ({"label_smoothing": 1.0}, "expected a share below 1"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FineTuning(**settings)


def test_wrong_data_and_models_are_told(scene_files: Path, tmp_path: Path) -> None:
    model, tokenizer, processor, pairs = two.parts(scene_files)
    with pytest.raises(ValueError, match="40 pairs do not fill one step of 1 x 64"):
        finetune(model, tokenizer, processor, pairs, FineTuning(batch=64), tmp_path)
    with pytest.raises(ValueError, match=r"1 processes of batch=16 cannot carry components=16"):
        finetune(model, tokenizer, processor, pairs, FineTuning(batch=16, components=16, gathered=True), tmp_path)
    with pytest.raises(FileNotFoundError, match="to resume from"):
        finetune(model, tokenizer, processor, pairs, FineTuning(**SETTINGS), tmp_path, resume=True)
    long = [*pairs[:-1], Pair(pairs[-1].image, "a red ring . " * 80, "a red ring .")]
    with pytest.raises(ValueError, match=r"39\.png' has 322 tokens, the model reads 248"):
        finetune(model, tokenizer, processor, long, FineTuning(**SETTINGS), tmp_path)
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    with pytest.raises(ValueError, match=r"broken\.png' cannot be read as an image"):
        finetune(
            model,
            tokenizer,
            processor,
            [Pair(broken, one.long, one.short) for one in pairs],
            FineTuning(**SETTINGS),
            tmp_path / "run",
        )
    for other in (siglip(), text_tower()):
        with pytest.raises(ValueError, match="expected a CLIPModel"):
            finetune(other, tokenizer, processor, pairs, FineTuning(**SETTINGS), tmp_path)
