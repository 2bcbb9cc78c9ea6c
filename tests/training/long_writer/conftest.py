from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes.long_writer.smoke import prepare


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The recipe's settings for a tiny model, which nothing was trained from yet."""
    return prepare(Path(tmp_path_factory.mktemp("long_writer")))
