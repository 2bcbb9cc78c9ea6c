"""Configs of recipes/long_writer for other folders, and scores, made up for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def elsewhere(config: dict[str, Any], folder: Path, **changes: Any) -> dict[str, Any]:
    """The config with another folder, and changes of its stages."""
    sections = {name: config[name] | change for name, change in changes.items()}
    return config | sections | {"out": str(folder / "out")}


def scores(exact: list[float], ended: list[float], length: list[float], loss: float) -> dict[str, Any]:
    task = {"task": "table", "tokens": 500, "exact": exact, "share": exact, "frame": exact, "ended": ended}
    place = {"asked": 500, "form": "plain", "ended_length": length, "length": length, "ended": ended}
    writing = place | {"ratio": [0.5, 1.1, 1.2], "words": [250, 550, 600]}
    writing |= {"repeated": [0.4, 0.0, 0.1], "text repeated": [0.01] * 3}
    more = {"not measured": ["tasks 2000"], "no room": [], "loss on held-back answers": loss}
    return {"tasks": [task], "writing": [writing], **more}
