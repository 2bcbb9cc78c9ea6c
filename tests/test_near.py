"""Every table of names suggests the one that was probably meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import hf_longctx
from hf_longctx.clip.evaluation import read_protocol
from hf_longctx.evaluation.catalogue import make_task, read
from hf_longctx.evaluation.metrics import check, score
from hf_longctx.evaluation.runner import find_task
from hf_longctx.evaluation.sample import Sample
from hf_longctx.generation.xl3m import XL3M
from hf_longctx.near import did_you_mean
from hf_longctx.planning.hardware import find_machine
from hf_longctx.registry import get

SAMPLE = Sample(id="1", task="t", context="", question="", answers=("a",), max_new_tokens=1, metric="rouge_overal")
WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a task": (lambda: make_task("niah_singel_1"), "niah_single_1"),
    "ppl among tasks": (lambda: make_task("pppl"), "ppl"),
    "a task of a run": (lambda: find_task("pppl", {}), "ppl"),
    "a setting of a task": (lambda: find_task("ppl", {"n_target": 8}), "n_targets"),
    "a reader": (lambda: read("longbnch", "x"), "longbench"),
    "a metric": (lambda: score("a", SAMPLE), "rouge_overall"),
    "a metric before the run": (lambda: check([SAMPLE]), "rouge_overall"),
    "a method": (lambda: get("LM-infinit"), "lm_infinite"),
    "a setting": (lambda: hf_longctx.LMInfinite.from_fields({"nlocal": 4}), "n_local"),
    "a RoPE scaling": (lambda: hf_longctx.RopeScaling(type="yarm", factor=2), "yarn"),
    "a score of XL3M": (lambda: XL3M(score="entropi"), "entropy"),
    "a GPU": (lambda: find_machine("h10"), "h100"),
    "a dtype": (lambda: hf_longctx.plan("x", 1024, dtype="bfloat"), "bfloat16"),
    "a benchmark of CLIP": (lambda: read_protocol("coc", Path()), "coco"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_name_suggests_the_nearest(what: str) -> None:
    make, meant = WRONG[what]
    with pytest.raises(ValueError, match=rf"Did you mean '?{meant}'?\?"):
        make()


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert did_you_mean("zebra", ["ppl", "kv"]) == ""
    assert did_you_mean(None, ["ppl"]) == ""
    assert did_you_mean("PPL", ["ppl", "kv"], quoted=False) == "Did you mean ppl? "
