"""The lines of the guide and of the card run as pasted, on a tiny model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.segments.xl3m import stored
from tests.tiny import tiny, tokenizer

ROOT = Path(__file__).resolve().parents[2]


def run(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **instead: str) -> dict[str, Any]:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), re.DOTALL)
    for old, new in instead.items():  # the tiny tokenizer knows only its own words
        assert old in code
        code = code.replace(old, new)
    monkeypatch.setattr("hf_longctx.checkpoints.load", lambda name: (tiny(), tokenizer()))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_lines_of_the_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "book.txt").write_text(" ".join(f"w{3 + i * 7 % 50}" for i in range(900)))
    more = {
        "key_context=1024": "key_context=100, segment=64",
        "custom_generate=xl3m": "custom_generate=XL3M(segment=64)",
    }
    names = run("docs/segments.md", tmp_path, monkeypatch, **{"Who is the captain?": "w55 w56 w57", **more})
    assert "segments (900 tokens):" in capsys.readouterr().out
    assert names["output"].shape == (1, 3 + 40)
    assert (tmp_path / "scores.jsonl").is_file()


def test_lines_of_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[str] = []
    monkeypatch.setattr("transformers.PreTrainedModel.push_to_hub", lambda self, name: pushed.append(name))
    words = {"Once upon a time, ": "w3 w4 w5 w6 ", "5000": "300", "who was it?": "w7 w8 w9 w10 w11"}
    settings = {"XL3M()": "XL3M(segment=64, key_context=100)"}
    names = run("model_cards/xl3m.md", tmp_path, monkeypatch, **words, **settings)
    assert pushed == [f"you/{folder.name}" for folder in tmp_path.iterdir()]
    assert stored(names["model"].generation_config) == names["settings"]
