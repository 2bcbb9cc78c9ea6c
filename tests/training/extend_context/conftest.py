"""A tiny model, its tokenizer and its texts, as the recipe's smoke form makes them."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from recipes.extend_context.corpus import Corpus
from recipes.extend_context.corpus import prepare as prepared_corpus
from recipes.extend_context.smoke import prepare


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return prepare(tmp_path_factory.mktemp("extend-context"))


@pytest.fixture(scope="module")
def tokenizer(config: dict[str, Any]) -> Any:
    return AutoTokenizer.from_pretrained(config["model"])


@pytest.fixture(scope="module")
def corpus(config: dict[str, Any], tokenizer: Any) -> Corpus:
    return prepared_corpus(config, tokenizer)
