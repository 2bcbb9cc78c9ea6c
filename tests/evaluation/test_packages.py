"""Every task says which optional packages it is made with, and is refused without them before a model is asked."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hf_longctx.evaluation import tasks
from hf_longctx.evaluation.catalogue import RULER, make_task, packages, samples
from hf_longctx.evaluation.folder import declared
from hf_longctx.evaluation.runner import evaluate, find_task
from hf_longctx.evaluation.task import Request
from hf_longctx.evaluation.words import WONDERWORDS
from hf_longctx.upstream.installing import Package, check_packages, install_extra
from tests.optional import hide, optional

NAMES = list(declared(tasks, "TASKS"))


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_made_with_what_it_says(name: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {module for package in make_task(name).packages for module in package.modules}
    hide(monkeypatch, *optional() - own)
    assert samples(name, tokenizer, 3000, 1)
    for module in own:
        with monkeypatch.context() as without:
            hide(without, module)
            for refused in (
                lambda: samples(name, tokenizer, 3000, 1),
                lambda: find_task([name], {}).check(Request(tasks=[name], lengths=[3000])),
                lambda: check_packages(packages([name])),
            ):
                with pytest.raises(ImportError, match=rf"{module}.* Install it: pip install"):
                    refused()


def test_ruler_needs_what_its_tasks_need(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages(["ruler"]) == packages(RULER) == (WONDERWORDS,)
    assert packages(["passkey", "leval:some.jsonl"]) == ()


def test_nothing_is_measured_without_it(
    llama: Any, tokenizer: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "wonderwords")
    monkeypatch.setattr(llama, "forward", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(ImportError, match=re.escape(install_extra("evaluation"))):
        evaluate(llama, tokenizer, task="kv,niah_single_1", lengths=[1000], out=tmp_path / "out", alone=True)
    assert not (tmp_path / "out").exists()


def test_an_evaluation_takes_what_its_tasks_name(
    llama: Any, tokenizer: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To its last line: scores, files and the coloured table."""
    hide(monkeypatch, *optional())
    found = evaluate(
        llama, tokenizer, task="kv,vt", lengths=[900], out=tmp_path, window=600, samples=1, alone=True
    )  # fmt: skip
    assert {row["detail"].get("task") for row in found["rows"]} >= {"kv", "vt"}


def test_all_that_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Package("figures are drawn by one", ("nowhere_one",), "pip install one")
    two = Package("words come from two", ("json", "nowhere_two"), "pip install two")
    with pytest.raises(ImportError) as said:
        check_packages([one, two, one])
    assert str(said.value) == (
        "figures are drawn by one (No module named 'nowhere_one'). Install it: pip install one. "
        "words come from two (No module named 'nowhere_two'). Install it: pip install two."
    )
    check_packages([Package("this is always there", ("json",), "")])
