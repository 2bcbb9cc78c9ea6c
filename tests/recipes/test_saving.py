"""recipes/benchmarks/saving.py: result files that several calls fill."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.evaluation.report.rows import conditions
from hf_longctx.evaluation.rows import row
from recipes.benchmarks.reading import command_without_paths
from recipes.benchmarks.saving import Saved

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = """
import sys
from pathlib import Path
from hf_longctx.evaluation.rows import row
from recipes.benchmarks.saving import Saved
Saved(Path(sys.argv[1]), "tiny", "cpu", "a").add(row(f"{sys.argv[2]} {n}", n, "") for n in range(25))
"""


def test_a_later_call_goes_on_with_the_file_and_another_commit_begins_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sequence_parallel_train.json"

    def add(commit: str, *rows: dict[str, Any], label: str = "random weights, tiny, fp32") -> dict[str, Any]:
        Saved(path, label, "cpu", commit).add(iter(rows))
        return {one["what"]: one["value"] for one in json.loads(path.read_text(encoding="utf-8"))["rows"]}

    assert add("a", row("8k", 1, ""), row("32k", 2, "")) == {"8k": 1, "32k": 2}
    assert list(add("a", row("8k", 3, ""), row("64k", 4, "")).items()) == [("8k", 3), ("32k", 2), ("64k", 4)]
    assert add("b", row("8k", 5, "")) == {"8k": 5, "32k": 2, "64k": 4}
    assert add("c", row("64k", 6, "")) == {"8k": 5, "32k": 2, "64k": 6}
    found = json.loads(path.read_text(encoding="utf-8"))
    assert {one["what"]: one.get("commit") for one in found["rows"]} == {"8k": "b", "32k": "a", "64k": None}
    assert "commit c; 1 row of commit a; 1 row of commit b." in conditions(found)
    assert "replaced" not in capsys.readouterr().out
    assert add("c", row("8k", 7, ""), label="another model") == {"8k": 7}
    told = "its 3 rows are replaced, since they are of model random weights, tiny, fp32, here another model."
    assert told in capsys.readouterr().out


def test_calls_at_once_lose_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    calls = [subprocess.Popen([sys.executable, "-c", AT_ONCE, str(path), name], cwd=ROOT) for name in "xyz"]
    assert [call.wait() for call in calls] == [0, 0, 0]
    found = {one["what"]: one["value"] for one in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    assert found == {f"{name} {n}": n for name in "xyz" for n in range(25)}
    assert list(tmp_path.iterdir()) == [path]


def test_rows_are_arranged_with_those_that_follow_from_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"

    def arrange(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        kept = [rows[name] for name in ("b", "a") if name in rows]
        return [row("sum", sum(one["value"] for one in kept), ""), *kept]

    for name, value in ("a", 1), ("b", 2), ("a", 5):
        Saved(path, "tiny", "cpu", "a", arrange=arrange).add(iter([row(name, value, "")]))
    found = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [(one["what"], one["value"]) for one in found] == [("sum", 7), ("b", 2), ("a", 5)]


def test_commands_name_no_place_of_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever option has it. Numbers, names and relative paths stay as they are."""
    words = ["--model", "/runs/7/model", "--documents", "/texts", "--variants", "base", "a+b", "--out=/runs/7/x.json"]
    words += ["--chats", "/runs/7/writing.jsonl", "--models=/runs/7/models", "--writing", "held/back.jsonl"]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "recipes/long_writer/screen.py"), *words, "--averaged", "0.3"])
    said = "python -m recipes.long_writer.screen --documents DOCS --variants base a+b --chats writing.jsonl"
    assert command_without_paths() == f"{said} --models=models --writing held/back.jsonl --averaged 0.3"
