"""recipes/extend_context/curriculum.py trains both ways on equal tokens."""

from __future__ import annotations

import json
from pathlib import Path

from recipes.extend_context import curriculum


def test_smoke(tmp_path: Path) -> None:
    curriculum.main(["--smoke", "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    ours, joined = found["equal draw"], found["joined"]
    assert ours["tokens"] == joined["tokens"] == 8 * 512
    assert [*ours["held-back loss"]] == [*joined["held-back loss"]] == ["32", "64", "128", "256"]
    assert found["mean held-back loss over joined"] > 0
    assert "by size 256:" in joined["pieces"]
    assert "by size 32:" in ours["pieces"]
