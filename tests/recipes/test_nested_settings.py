"""A misspelt setting inside a section of a recipe's config is refused before anything is loaded."""

import copy
from pathlib import Path
from typing import Any

import pytest

from recipes.config import read_yaml
from recipes.extend_context import settings as extend_context
from recipes.long_clip import train as long_clip
from recipes.long_writer import settings as long_writer

# what is checked with the model (positions), or by a trainer whose package may not be installed (TRL's)
LATER = {("positions",), ("sft", "training"), ("dpo", "training"), ("grpo", "training")}
# what is given on to transformers as it is, and names of one's own
OPEN = {("training", "gradient_checkpointing_kwargs"), ("evaluation", "scaled")}


def sections(config: dict[str, Any], around: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, value in config.items():
        if isinstance(value, dict) and name != "variants":
            found += [(*around, name), *sections(value, (*around, name))]
    return found


CASES = [
    pytest.param(module, section, id=f"{module.__name__.split('.')[1]}-{'-'.join(section)}")
    for module in (extend_context, long_writer)
    for section in sections(read_yaml(module.DEFAULT))
    if section not in LATER | OPEN
]


@pytest.mark.parametrize(("module", "section"), CASES)
def test_a_misspelt_setting_of_a_section_is_refused(module: Any, section: tuple[str, ...]) -> None:
    config = copy.deepcopy(read_yaml(module.DEFAULT))
    config.pop("variants", None)
    module.checked(copy.deepcopy(config))
    inner = config
    for name in section:
        inner = inner[name]
    inner["mispelt"] = 1
    with pytest.raises(ValueError, match="mispelt"):
        module.checked(config)


def test_a_setting_of_a_section_that_is_missing_is_named() -> None:
    config = {name: value for name, value in read_yaml(extend_context.DEFAULT).items() if name != "variants"}
    del config["evaluation"]["depths"]
    with pytest.raises(ValueError, match="the config lacks evaluation: depths"):
        extend_context.checked(config)


def test_a_misspelt_setting_of_the_training_of_a_clip_is_refused(tmp_path: Path) -> None:
    config = {"model": "none", "pairs": "none", "out": str(tmp_path / "out"), "training": {"bach": 3}}
    with pytest.raises(ValueError, match=r"training: bach: FineTuning has no such field\. Did you mean 'batch'"):
        long_clip.run(config)
    assert not any(tmp_path.iterdir())
