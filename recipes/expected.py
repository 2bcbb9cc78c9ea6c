"""The figures of a recipe's `--smoke` beside those of its expected.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def hold(found: Mapping[str, float], file: Path) -> None:
    """SystemExit where a figure of `file`'s "smoke" is missed by more than its tolerance."""
    expected = json.loads(file.read_text(encoding="utf-8"))["smoke"]
    off = [name for name, one in expected.items() if not abs(found[name] - one["value"]) <= one["tolerance"]]
    if off:
        raise SystemExit(f"off: {', '.join(off)}; expected.json: {json.dumps({name: expected[name] for name in off})}")
