"""A tiny stock model with its tokenizer, as it is saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import tiny, tokenizer


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "stock"
    tiny().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
