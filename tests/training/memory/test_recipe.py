"""recipes/far/ runs on a CPU, with a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from recipes.far import ladder, longest


@pytest.mark.parametrize(("module", "name", "rows"), [(ladder, "far_ladder", 6), (longest, "far_longest", 2)])
def test_smoke(module: object, name: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe", "--smoke", "--out", str(tmp_path)])
    module.main()  # type: ignore[attr-defined]
    found = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert len(found["rows"]) == rows
    assert all(row["value"] == 0 and row["beside"]["tokens/s"] > 0 for row in found["rows"]), "no card, but steps"
