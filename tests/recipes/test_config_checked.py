"""A config that cannot work is refused before anything is loaded or made: what was given, and what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

from recipes.config import check_training, read_yaml
from recipes.extend_context.settings import read_config as of_extend_context
from recipes.long_dpo.train import run as long_dpo
from recipes.long_writer.settings import read_config as of_long_writer
from recipes.sequence_parallel_sft.train import run as sequence_parallel_sft

RECIPES = Path(__file__).parents[2] / "recipes"
SHARED = {"sequence_parallel_sft": sequence_parallel_sft, "long_dpo": long_dpo}
READ = {"extend_context": of_extend_context, "long_writer": of_long_writer, "any": read_yaml}


@pytest.mark.parametrize("reader", READ)
@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, "No such file. Give a copy of the recipe's config.yaml"),
        ("", "holds nothing: expected settings"),
        ("- a\n- b\n", "holds a list: expected settings"),
        ("a: [1", "is not YAML"),
    ],
)
def test_a_file_without_settings(tmp_path: Path, reader: str, written: str | None, message: str) -> None:
    file = tmp_path / "mine.yaml"
    if written is not None:
        file.write_text(written)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        READ[reader](file)
    assert "mine.yaml" in str(error.value)


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No such file"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("recipe", SHARED)
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model", 5, "model: 5: expected text"),
        ("held_out", "1", "held_out: '1': expected a whole number, 1 or more"),
        ("held_out", True, "held_out: True: expected a whole number, 1 or more"),
        ("held_out", 1.5, "held_out: 1.5: expected a whole number"),
        ("out", None, "out: None: expected text"),
        ("kind", 3, "kind: 3: expected text"),
        ("training", None, "training: None: expected settings below it"),
        ("training", ["a"], r"training: .*expected settings below it"),
    ],
)
def test_a_setting_of_another_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, name: str, value: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = read_yaml(RECIPES / recipe / "config.yaml")
    with pytest.raises(ValueError, match=message):
        SHARED[recipe](config | {name: value})
    assert not list(tmp_path.iterdir())


def test_sizes_of_each_recipe() -> None:
    for recipe, name in (("sequence_parallel_sft", "pack"), ("long_dpo", "longest")):
        config = read_yaml(RECIPES / recipe / "config.yaml")
        with pytest.raises(ValueError, match=f"{name}: '32k': expected a whole number"):
            SHARED[recipe](config | {name: "32k"})


def test_fields_of_training() -> None:
    check_training(read_yaml(RECIPES / "sequence_parallel_sft/config.yaml")["training"], TrainingArguments)
    with pytest.raises(ValueError, match="learnin_rate: TrainingArguments has no such field"):
        check_training({"learnin_rate": 1.0}, TrainingArguments)
    word = yaml.safe_load("learning_rate: 1e-5")
    with pytest.raises(ValueError, match="learning_rate: '1e-5' is text, expected a number"):
        check_training(word, TrainingArguments)


@pytest.mark.parametrize(
    ("recipe", "name", "value"),
    [
        ("extend_context", "tokens", "3M"),
        ("extend_context", "mix", 3),
        ("extend_context", "short", 4096),
        ("long_writer", "tasks", "all"),
        ("long_writer", "seed", "one"),
    ],
)
def test_settings_of_trainings_by_themselves(tmp_path: Path, recipe: str, name: str, value: Any) -> None:
    config = read_yaml(RECIPES / recipe / "config.yaml")
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(config | {name: value}))
    with pytest.raises(ValueError, match=rf"{name}: .*: expected"):
        READ[recipe](file)
