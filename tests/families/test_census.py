"""A sample of the census, what the census calls wrong, and the document that shows its verdicts."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hf_longctx import LMInfinite
from tests.families.census import __main__ as command
from tests.families.census import looking, record, running
from tests.families.census.building import build
from tests.families.census.looking import ROUNDING, Verdict, distance, look
from tests.families.census.scope import MODEL_TYPES, NO_ROTARY, WRAPPERS, without_rotary, wrapped
from tests.families.document import DOCUMENT, render
from tests.families.table import FAMILIES, SAMPLE

SERVED, REFUSED = Verdict("served"), Verdict("refused", "why")
FILES = sorted(record.files())


@pytest.mark.parametrize("family", sorted(SAMPLE.values()))
def test_a_family_for_each_difference_is_as_the_census_has_it(family: str) -> None:
    known = record.read(record.reference() or FILES[0]).get(family, {})
    verdict = running.judge(family)
    assert verdict.state == known.get("state", verdict.state), verdict.line()
    assert verdict.state not in ("WRONG", "CRASH", "untried"), verdict.line()
    assert verdict.off() <= ROUNDING, verdict.line()
    assert verdict.state != "refused" or (FAMILIES[family].refused or verdict.why) in verdict.why


@pytest.mark.parametrize("release", FILES)
def test_committed_verdicts_are_those_of_the_table(release: str) -> None:
    families = record.read(release)
    wrong = {name for name, row in families.items() if row["state"] in ("WRONG", "CRASH")}
    assert not wrong
    if release == FILES[-1]:
        for name in FAMILIES.keys() & families.keys():
            refused = FAMILIES[name].refused
            assert families[name]["state"] == ("served" if refused is None else "refused"), name
            assert refused is None or refused in families[name]["why"], name


def test_the_document_is_rendered_from_the_committed_verdicts() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == render(), "run `make tables`"


def other_method(**_: Any) -> Any:
    return LMInfinite(n_global=1, n_local=4)


def raising(error: Exception) -> Callable[..., Any]:
    def method(**_: Any) -> Any:
        raise error

    return method


@pytest.mark.parametrize(
    ("method", "state"),
    [
        (other_method, "WRONG"),
        (raising(ValueError("a reason")), "refused"),
        (raising(NotImplementedError("a reason")), "refused"),
        (raising(KeyError("a name")), "CRASH"),
    ],
)
@pytest.mark.parametrize("name", ["PositionFree", "LMInfinite"])
def test_what_differs_is_wrong_and_what_raises_no_reason_is_a_crash(
    name: str, method: Callable[..., Any], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, name, method)
    assert look(build("llama")).state == state


def test_a_refusal_that_changes_the_model_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")

    def changing(**_: Any) -> Any:
        model.lm_head.weight.data += 1
        raise ValueError("a reason")

    monkeypatch.setattr(looking, "PositionFree", changing)
    verdict = look(model)
    assert (verdict.state, verdict.why, verdict.undone) == ("WRONG", "a reason", False)


def test_no_number_is_infinitely_far() -> None:
    assert distance(torch.tensor([1.0, torch.nan]), torch.ones(2)) == torch.inf
    assert distance(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])) == pytest.approx(4 / 3)


def test_what_cannot_be_built_or_takes_too_long_is_untried(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGALRM)
    monkeypatch.setattr(running, "build", lambda name: signal.raise_signal(signal.SIGALRM))
    assert running.judge("llama", limit_s=60) == Verdict("untried", "not done after 60 s")
    monkeypatch.setattr(running, "build", lambda name: {}[name])
    assert running.judge("llama") == Verdict("untried", "KeyError: 'llama'")
    assert signal.getsignal(signal.SIGALRM) is before


def test_decoders_are_told_from_wrappers_and_from_models_without_rotation() -> None:
    assert wrapped("gemma3") == "gemma3_text"
    assert wrapped("llama") is wrapped("bart") is None
    assert without_rotary("llama") is without_rotary("gptj") is None
    assert without_rotary("mamba") == without_rotary("bart") == "its code has no rotary embedding"
    assert {*NO_ROTARY, *WRAPPERS} <= {*MODEL_TYPES, "inkling2_text"}, "5.17 has no inkling2_text"


def test_the_command_fails_on_what_is_wrong_and_on_what_is_served_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"llama": {"state": "served"}, "gone": {"state": "served"}, "doge": {"state": "refused", "why": "why"}}
    monkeypatch.setattr(record, "read", lambda release: rows)
    assert command.problems({"llama": SERVED, "doge": REFUSED, "new": REFUSED}, "5.23") == []
    assert command.problems({"doge": SERVED}, "5.23") == []
    assert command.problems({"llama": REFUSED}, "5.23") == [
        "llama: served at transformers 5.23, now refused: why",
    ]
    assert command.problems({"new": Verdict("CRASH", "KeyError: 'x'")}, None) == ["new: CRASH: KeyError: 'x'"]
    (line,) = command.problems({"new": Verdict("WRONG", same=0.5)}, "5.23")
    assert line.startswith("new: WRONG: within 5e-01 of the stock model")


def test_served_families_beyond_rounding_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    text = command.summary({"llama": SERVED, "new": Verdict("served", same_padded=6e-7), "doge": REFUSED})
    assert "2 of 3 rotary decoders are served" in text
    assert text.endswith("served, but further than 5e-07 from the stock model: new")


def test_a_release_is_compared_with_its_own_file_or_with_the_newest_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed, expected in [("5.23", "5.23"), ("5.22", "5.17"), ("99.1", FILES[-1]), ("4.9", None)]:
        monkeypatch.setattr(record, "minor", lambda version="", installed=installed: installed)
        assert record.reference() == expected


def test_verdicts_are_kept_in_one_file_per_release(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    path = record.write({"new": Verdict("served", same=1.234e-7), "doge": REFUSED, "bad": Verdict("WRONG", ways=0.57)})
    assert record.read(path.stem) == {
        "bad": {
            **{"state": "WRONG", "same": 0.0, "same_padded": 0.0, "within_window": 0.0, "undone": True},
            **{"ways": 0.6, "ways_stock": 0.0},
        },
        "doge": {"state": "refused", "why": "why"},
        "new": {"state": "served", "same": 1e-7, "same_padded": 0.0},
    }
