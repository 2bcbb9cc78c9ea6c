"""The lines of docs/evaluation.md, on a tiny model and short lengths."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.evaluation import read, scores
from hf_longctx.evaluation.catalogue import readers, task_names

pytest.importorskip("wonderwords")
GUIDE = (Path(__file__).parents[2] / "docs/evaluation.md").read_text(encoding="utf-8")


def test_lines_on_evaluation_run_as_pasted(
    llama: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llama.config.max_position_embeddings = 600
    monkeypatch.setattr("hf_longctx.hub.load", lambda name: (llama, tokenizer))
    monkeypatch.setattr("hf_longctx.evaluation.suite.load_text", lambda name: "A text of one sentence. ")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL))
    exec(code.replace("lengths=[4096, 8192], samples=5", "lengths=[900, 901], samples=1"), {})
    printed = capsys.readouterr().out
    assert "niah_single_1, 900 tokens, LMInfinite" in printed
    assert "What are all the special magic numbers for" in printed
    assert "(0.0, [0.0, 0.0])" in printed
    assert (tmp_path / "runs/two/results.json").is_file()


def test_the_schema_that_is_shown_is_read(tmp_path: Path) -> None:
    (text,) = re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)
    (tmp_path / "mine.jsonl").write_text(json.dumps(json.loads(text)))
    (sample,) = read("jsonl", tmp_path / "mine.jsonl")
    assert scores(["It is 7."], [sample])[0] == 1


def test_every_task_and_reader_is_in_the_guide() -> None:
    listed = GUIDE.replace("`niah_single_1` to `_3`", "`niah_single_1` `niah_single_2` `niah_single_3`").replace(
        "`niah_multikey_1` to `_3`", "`niah_multikey_1` `niah_multikey_2` `niah_multikey_3`"
    )
    assert [name for name in task_names() if f"`{name}" not in listed] == []
    assert [name for name in readers() if f"| `{name}` |" not in GUIDE] == []
