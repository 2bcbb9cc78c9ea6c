"""The lines of the card on edits run as pasted, on a tiny model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.upstream.caches import generate_cache
from tests.tiny import tiny, tokenizer

CARD = Path(__file__).parents[2] / "model_cards/pie.md"


def test_lines_run_as_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", CARD.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.setattr("hf_longctx.hub.load", lambda name: (tiny(), tokenizer()))
    (name,) = generate_cache(None)
    # older releases have another name for it, as the card says
    code = code.replace(".cache  #", f".{name}  #").replace("cache=cache", f"{name}=cache")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["output"].shape[1] == names["new"].shape[1] + 20
