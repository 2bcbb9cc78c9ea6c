"""A place that a command of recipes/ cannot write to is told in one line while its options are read, by every one."""

import importlib
import runpy
import sys
import threading
from argparse import ArgumentTypeError
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.storage.files import check_folder
from recipes.benchmarks import fast_path, hydragen, xl3m
from recipes.extend_context import curriculum
from recipes.far import predicted
from recipes.long_writer import score
from recipes.outs import new_file, new_folder, result_path, result_place

RECIPES = Path(__file__).parents[2] / "recipes"
# where a command has the option from: itself, or what several commands share
FROM = ('"--out"', "arguments(__doc__", "parser(__doc__", "parser()", "command(__doc__")
JOBS = "recipes.jobs.__main__"


def commands() -> list[str]:
    """The modules of recipes/ that `python -m` runs and that take --out."""
    found = []
    for file in sorted(RECIPES.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        runs = '__name__ == "__main__"' in text or file.name == "__main__.py"
        if runs and any(one in text for one in FROM) and "shared_batches import" not in text:
            found.append(".".join(file.relative_to(RECIPES.parent).with_suffix("").parts))
    return found


def main_of(module: str) -> Any:
    """What `python -m` runs."""
    found = getattr(importlib.import_module(module), "main", None)
    return found or partial(runpy.run_module, module, run_name="__main__")


def told(
    module: str, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str
) -> str:
    """What a command says of a place, instead of beginning."""
    words = [*more, "--out", str(out)]
    if module == JOBS:  # the place is for a machine elsewhere in a dry run, so that it is looked at after the jobs
        monkeypatch.setattr(importlib.import_module(module), "check", lambda _: None)
        monkeypatch.setattr(importlib.import_module(module), "visible", lambda: ["0"])
        words = ["run", "tests_one_card", "--seconds", "1", *words]
    monkeypatch.setattr(sys, "argv", [module, *words])
    try:
        code = main_of(module)()
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    return capsys.readouterr().err


def test_there_are_such_commands() -> None:
    assert {one.__name__ for one in (predicted, curriculum, score)} < set(commands())
    assert len(commands()) > 40


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning")
@pytest.mark.parametrize("module", commands())
def test_a_place_below_a_file_is_told_before_anything_runs(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("text")
    last = told(module, tmp_path / "file" / "below" / "out", monkeypatch, capsys).splitlines()[-1]
    assert "--out" in last
    assert "is a file; expected" in last or "There is a file in the way" in last


@pytest.mark.parametrize("module", [one.__name__ for one in (predicted, curriculum, score)])
def test_a_folder_in_place_of_a_file_is_told_before_anything_runs(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results.json"
    folder.mkdir()
    assert "is a folder; expected the name of a file to write" in told(module, folder, monkeypatch, capsys)


@pytest.mark.parametrize("benchmark", [fast_path, hydragen, xl3m])
def test_several_parts_do_not_write_one_file(
    benchmark: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = sys.modules[benchmark.__name__]  # type: ignore[attr-defined]
    parts = list(module.PARTS if hasattr(module, "PARTS") else ["scores", "find"])[:2]
    assert "each of the 2 parts writes its own" in told(
        module.__name__, tmp_path / "one.json", monkeypatch, capsys, *parts
    )
    assert not any(tmp_path.iterdir())


def test_what_a_place_may_be(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "folder.json").mkdir()
    assert new_file(str(tmp_path / "file.txt")) == tmp_path / "file.txt"  # it is written anew
    assert new_folder(str(tmp_path / "folder.json")) == tmp_path / "folder.json"
    assert result_path(result_place(str(tmp_path / "new")), "x") == tmp_path / "new" / "x.json"
    assert result_path(result_place(str(tmp_path / "y.json")), "x") == tmp_path / "y.json"
    wrong = [(new_file, "folder.json"), (result_place, "folder.json"), (new_folder, "file.txt")]
    for kind, name in [*wrong, (result_place, "file.txt"), (new_folder, "new.json")]:
        with pytest.raises(ArgumentTypeError, match="expected"):
            kind(str(tmp_path / name))
    for kind in (new_file, new_folder, result_place):
        with pytest.raises(ArgumentTypeError, match="nothing is given"):
            kind("")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file.txt", "folder.json"]


def test_only_the_first_of_launched_processes_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("text")
    monkeypatch.setenv("RANK", "1")
    assert new_file(str(tmp_path / "file" / "below.json")).name == "below.json"


def test_several_at_once_look_at_one_new_folder(tmp_path: Path) -> None:
    """Each removes it, empty, while another one is about to write into it."""
    failed = list[Exception]()

    def look() -> None:
        try:
            for _ in range(100):
                check_folder(tmp_path / "a" / "b")
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
