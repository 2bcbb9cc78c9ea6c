"""The lines of docs/planning.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from recipes.far.settings import LLAMA_1B

from .test_preflight import arguments, model

GUIDE = Path(__file__).parents[3] / "docs" / "planning.md"


def test_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned, checked = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    exec(planned, {"config": LLAMA_1B})
    assert capsys.readouterr().out.startswith("Fits: 524,288 tokens on 2 x h100")
    names: dict[str, Any] = {"model": model(), "args": arguments(tmp_path), "data": []}
    exec(checked, names)
    assert names["trainer"]._preflight is True
