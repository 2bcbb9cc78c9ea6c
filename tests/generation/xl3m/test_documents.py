"""The lines of the guide and of the card run as pasted, on a tiny model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_longctx import XL3M
from tests.children import python_path
from tests.generation.xl3m.test_prompt import chatting
from tests.tiny import tiny

ROOT = Path(__file__).resolve().parents[3]


def run(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **instead: str) -> dict[str, Any]:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), re.DOTALL)
    for old, new in instead.items():  # the tiny tokenizer knows only its own words
        assert old in code
        code = code.replace(old, new)
    monkeypatch.setattr("hf_longctx.hub.load", lambda name: (tiny(), chatting()))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_lines_of_the_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = " ".join(f"w{3 + i * 7 % 50}" for i in range(900))
    monkeypatch.setattr("hf_longctx.text.load_text", lambda name: words)
    more = {
        "What is the access code of the archive in Rotterdam?": "w55 w56 w57",
        "{text[:10_000]}\\n\\n{fact}\\n\\n{text[10_000:]}": "{text}",
        "key_context=1024": "key_context=100, segment=64",
        "custom_generate=xl3m": "custom_generate=XL3M(segment=64)",
    }
    names = run("docs/segments.md", tmp_path, monkeypatch, **more)
    assert "segments (900 tokens):" in capsys.readouterr().out
    assert names["output"].shape == (1, 2 + 6 + 40), "w3 w4; w55 w56 w57 w7 w3 w5; what is new"
    assert (tmp_path / "scores.jsonl").is_file()


@pytest.mark.real_model
def test_the_guide_shows_what_the_model_answers(tmp_path: Path) -> None:
    """On a text that fits, which is short: that a segment is found in a long one is measured on the card."""
    from hf_longctx.hub import locate

    try:
        locate("smollm2-135m-instruct")
    except OSError as error:
        pytest.skip(f"the model cannot be had: {error}")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/segments.md").read_text(encoding="utf-8"), re.DOTALL)
    shown = [line.removeprefix("# ") for line in code.splitlines() if line.startswith("# The ")]
    short = code.replace("40_000", "2_000").replace("10_000", "1_000")
    environment = {**os.environ, "PYTHONPATH": python_path()}
    done = subprocess.run([sys.executable, "-c", short], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert [printed[0], printed[-1]] == shown == [shown[0]] * 2


def test_lines_of_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[str] = []
    monkeypatch.setattr("transformers.PreTrainedModel.push_to_hub", lambda self, name: pushed.append(name))
    words = {"Once upon a time, ": "w3 w4 w5 w6 ", "5000": "300", "who was it?": "w7 w8 w9 w10 w11"}
    settings = {"XL3M()": "XL3M(segment=64, key_context=100)"}
    names = run("model_cards/xl3m.md", tmp_path, monkeypatch, **words, **settings)
    assert pushed == [f"you/{folder.name}" for folder in tmp_path.iterdir()]
    assert XL3M.stored_in(names["model"].generation_config) == names["settings"]
