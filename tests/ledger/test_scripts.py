"""The scripts of the ledger say of the installed releases what is recorded."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import DiffLlamaForCausalLM, Gemma2ForCausalLM, LlamaForCausalLM

from hf_longctx.upstream.ledger import FIXED, NOT_RUN, WRONG, Defect, defects
from hf_longctx.upstream.scripts import Seen, attempt, check, present

SCRIPTS = {"wrong": 'return "off by 3"', "fixed": "return None", "not run": "print('needs a GPU'); raise SystemExit(3)"}


LOADED = (LlamaForCausalLM, DiffLlamaForCausalLM, Gemma2ForCausalLM)  # so that there is something to leave changed


def classes() -> dict[tuple[str, str], type]:
    """What every module of transformers that is loaded calls a class."""
    loaded = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "transformers" and module}
    return {
        (name, attribute): value
        for name, module in loaded.items()
        for attribute, value in list(vars(module).items())
        if isinstance(value, type)
    }


@pytest.mark.parametrize("one", list(defects().values()), ids=lambda one: one.folder.name)
def test_the_defect_is_as_it_was_seen(one: Defect) -> None:
    before = classes()
    found = check(one)
    after = classes()
    assert [name for name, kept in before.items() if after[name] is not kept] == [], "the process goes on with these"
    if found.state == NOT_RUN:
        pytest.skip(found.told)
    if one.version in one.seen:
        assert found.state == one.seen[one.version], f"`make ledger` records it: {found.told}"
    assert bool(found.told) == (found.state == WRONG)


def entry(folder: Path, state: str, **settings: object) -> Defect:
    (folder / "repro.py").write_text(
        f'import sys\n\n\ndef defect():\n    {SCRIPTS[state]}\n\n\nif __name__ == "__main__":\n    sys.exit(defect())\n'
    )
    return replace(Defect(folder, "torch", "a title", "ours"), **settings)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("state", SCRIPTS)
def test_a_script_is_read_the_same_in_this_process_and_alone(tmp_path: Path, state: str, alone: bool) -> None:
    told = {"wrong": "off by 3", "fixed": "", "not run": "needs a GPU"}[state]
    assert check(entry(tmp_path, state, alone=alone)) == Seen(state, told)


@pytest.mark.parametrize(("state", "code"), [("wrong", 1), ("fixed", 0), ("not run", 3)])
def test_a_script_has_its_exit_code(tmp_path: Path, state: str, code: int) -> None:
    entry(tmp_path, state)
    assert subprocess.run([sys.executable, tmp_path / "repro.py"], capture_output=True).returncode == code


@pytest.mark.parametrize("alone", [False, True])
def test_a_script_that_breaks_is_an_error_and_no_finding(tmp_path: Path, alone: bool) -> None:
    one = entry(tmp_path, "wrong", alone=alone)
    (tmp_path / "repro.py").write_text("def defect():\n    return 1 / 0\n\n\ndefect()\n")
    with pytest.raises((ZeroDivisionError, RuntimeError), match="division by zero"):
        check(one)


def test_a_script_that_breaks_keeps_nobody_from_the_others(tmp_path: Path) -> None:
    one = entry(tmp_path, "wrong")
    (tmp_path / "repro.py").write_text("from torch import gone\n")
    assert attempt(one).state == present(one).state == NOT_RUN
    assert attempt(one).told.startswith("its script fails here, ImportError: cannot import name 'gone'")
    (tmp_path / "repro.py").write_text("raise SystemExit(1)\n")
    assert "ended with 1 before" in attempt(one).told


def test_of_a_package_that_is_not_installed_nothing_is_run(tmp_path: Path) -> None:
    one = replace(entry(tmp_path, "wrong"), package="no-such-package")
    assert check(one) == Seen(NOT_RUN, "no-such-package is not installed")


def test_where_this_version_was_seen_right_nothing_is_run(tmp_path: Path) -> None:
    one = entry(tmp_path, "wrong")
    assert present(one).state == WRONG
    assert present(replace(one, seen={one.version: FIXED})).state == FIXED
