from __future__ import annotations

import builtins
import errno
import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.evaluation import results as module
from hf_longctx.evaluation.report.rows import row_lines
from hf_longctx.evaluation.results import environment, result_file, write_results, write_whole
from hf_longctx.evaluation.rows import row
from hf_longctx.storage.cells import CellStore


def no_space(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("value", "bar", "holds"),
    [(30, ">= 30", True), (29.9, ">=30", False), (1.5, "< 1.5", False), (1e-6, "<= 1e-5", True), (0, "== 0", True),
     (None, ">= 1", False), (3, None, None)],
)  # fmt: skip
def test_whether_a_row_holds_follows_from_its_bar(value: float | None, bar: str | None, holds: bool | None) -> None:
    found = row("speed", value, "x", bar=bar)
    assert found["holds"] is holds
    assert list(found) == ["what", "value", "unit", "bar", "holds", "why", "beside"]


def test_a_bar_that_is_no_comparison_is_refused() -> None:
    with pytest.raises(ValueError, match='such as ">= 30"'):
        row("speed", 1, "x", bar="about 30")


def test_values_that_json_lacks_become_null_with_a_reason(tmp_path: Path) -> None:
    found = row("ppl", math.inf, "perplexity", beside={"stock": math.nan}, detail={"samples": [1.0, math.inf]})
    assert (found["value"], found["why"], found["beside"]) == (None, "the value is inf", {"stock": None})
    assert found["detail"] == {"samples": [1.0, None]}
    write_results(tmp_path / "r.json", result_file([found], model="tiny", command="test"))
    kept = json.loads((tmp_path / "r.json").read_text())
    assert list(kept) == ["command", "commit", "hardware", "versions", "model", "date", "rows"]
    assert kept["rows"] == [found]


def test_the_environment_names_what_ran() -> None:
    found = environment("cpu")
    assert set(found["versions"]) == {"hf_longctx", "torch", "transformers", "python"}
    assert "cores" in found["hardware"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    if head.returncode == 0:
        assert found["commit"].startswith(head.stdout.strip())


def test_outside_a_checkout_the_commit_is_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_commit", lambda: None)
    monkeypatch.setattr(module, "package_version", lambda: "1.2.3")
    assert environment("cpu")["commit"] == "hf_longctx 1.2.3"


@pytest.mark.parametrize("where", ["open", "replace"])
def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    path = tmp_path / "r.json"
    write_whole(path, b"old")
    if where == "open":
        monkeypatch.setattr(builtins, "open", no_space)
    else:
        monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match=r"could not write .*r\.json .*unchanged.*Free some space") as error:
        write_whole(path, b"new")
    monkeypatch.undo()
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_finished_cell_is_not_run_again(tmp_path: Path) -> None:
    path, ran = tmp_path / "sub" / "cells.jsonl", []

    def work() -> dict[str, float]:
        ran.append(1)
        return {"nll": 1.5}

    store = CellStore(path, {"seed": 0, "depths": (0, 1)})
    assert store.run(["stock", 8, 0.5, None], work) == {"nll": 1.5}
    assert store.run(["stock", 8, 0.5, None], work) == {"nll": 1.5}
    again = CellStore(path, {"depths": [0, 1], "seed": 0})
    assert again.run(("stock", 8, 0.5, None), work) == {"nll": 1.5}
    assert len(ran) == len(again) == 1
    assert ["stock", 8, 0.25, None] not in again


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_half_written_last_line_is_dropped_and_written_anew(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "cells.jsonl"
    store = CellStore(path, {})
    store.put(["a"], 1)
    whole = path.read_bytes()
    store.put(["b"], 2)
    extra = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + extra[: int(len(extra) * kept)])
    again = CellStore(path, {})
    assert ["a"] in again
    assert ["b"] not in again
    again.put(["b"], 3)
    assert CellStore(path, {})[["b"]] == 3


def test_a_half_written_first_line_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    path.write_text('{"fingerp')
    CellStore(path, {"seed": 1}).put(["a"], 1)
    assert len(CellStore(path, {"seed": 1})) == 1


def test_cells_of_another_run_are_refused_by_what_differs(tmp_path: Path) -> None:
    CellStore(tmp_path / "cells.jsonl", {"seed": 0, "model": "tiny"}).put(["a"], 1)
    with pytest.raises(ValueError, match=r"another run: seed was 0 and is 1\. Choose another --out, or delete"):
        CellStore(tmp_path / "cells.jsonl", {"seed": 1, "model": "tiny"})


@pytest.mark.parametrize("text", ["hello\n", '{"fingerprint": {}}\n{"key": [1]}\n', "[1]\n", "3\n", "\x00\xff\n"])
def test_a_file_that_is_no_store_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cells.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not a store of finished cells"):
        CellStore(path, {})
    assert path.read_text() == text


def test_a_full_disk_keeps_the_cells_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CellStore(tmp_path / "cells.jsonl", {})
    store.put(["a"], 1)
    monkeypatch.setattr(builtins, "open", no_space)
    with pytest.raises(OSError, match="cells before it are kept"):
        store.put(["b"], 2)
    monkeypatch.undo()
    assert ["b"] not in store
    assert len(CellStore(store.path, {})) == 1


def test_a_copy_of_a_checkout_is_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_LONGCTX_COMMIT", "0123abc")
    assert module.environment()["commit"] == "0123abc"


def test_next_to_no_bytes_are_no_number_with_an_exponent() -> None:
    """`recipes.far.ladder` counts a byte or so of pinned memory where none is asked for."""
    rows = [{"what": "a", "value": 1.5, "beside": {"GiB of the host": 2.0**-30, "error": 2e-9}}]
    rows.append({"what": "b", "value": 1.5, "beside": {"GiB of the host": 0.0012, "error": 0.0}})
    rows.append({"what": "c", "value": 1.5, "beside": {"GiB of the host": 0.0, "error": None}})
    beside = [line[2:] for line in row_lines({"rows": rows})[1:]]
    assert beside == [["< 0.001", "2e-09"], ["0.0012", "0"], ["0", "–"]]
