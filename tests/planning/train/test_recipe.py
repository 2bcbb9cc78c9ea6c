"""`recipes/far/predicted.py` in its tiny form, and what it makes of runs that fail."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipes.far import predicted
from recipes.far.settings import SETTINGS


def test_tiny_models_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    predicted.main(["--tiny", "--out", str(out)])
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    runs = [one for one in rows if "detail" in one]
    assert len(runs) == 2
    assert all(one["value"] > 0 for one in runs)
    assert rows[0]["holds"]
    assert rows[3]["value"] == 0


@pytest.mark.parametrize("numbers", ["99", "-1", "0,x", ""])
def test_settings_that_are_not_there(tmp_path: Path, numbers: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        predicted.main(["--tiny", f"--only={numbers}", "--out", str(tmp_path / "none.json")])
    assert f"--only {numbers}: expected numbers from 0 to" in capsys.readouterr().err
    assert not (tmp_path / "none.json").exists()


def test_twelve_settings_of_two_geometries_the_longest_first() -> None:
    assert len({one.name for one in SETTINGS}) == 12
    assert {one.model for one in SETTINGS} == {"1.24B", "SmolLM2-135M"}
    assert {one.run.gpus for one in SETTINGS} == {1, 2}
    lengths = [one.run.tokens for one in SETTINGS]
    assert max(lengths) == lengths[0] == 512 * 1024
    assert min(lengths) == lengths[-1] == 8 * 1024


def test_a_run_out_of_memory_that_was_said_to_fit_is_counted() -> None:
    ended = [predicted.compare(SETTINGS[0], {"out_of_memory": "CUDA out of memory"})]
    assert ended[0]["value"] is None
    assert list(predicted.summary(ended))[3]["holds"] is False


def test_predictions_that_hold() -> None:
    found = predicted.compare(SETTINGS[0], {"peak_bytes": 50 * 2**30, "seconds": 210.0})
    *_, wrong = predicted.summary([found])
    assert wrong["holds"]
    assert found["beside"]["predicted"] == pytest.approx(48, abs=1)


NEED = SimpleNamespace(peak=13 * 2**30, device=14 * 2**30, pinned=0, widest="head")


def test_predictions_are_made_again_of_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "predicted.json"
    found = {"seconds": 1.0, "peak_bytes": 12 * 2**30, "gpu": "a card"}
    row = predicted.compare(SETTINGS[10], found)
    monkeypatch.setattr(predicted, "need", lambda sizes, run: NEED)
    out.write_text(json.dumps({"commit": "that of the measurement", "rows": [row]}), encoding="utf-8")
    monkeypatch.setattr(predicted, "launch", lambda *args: pytest.fail("nothing is run"))
    predicted.main(["--again", "--out", str(out)])
    after = json.loads(out.read_text(encoding="utf-8"))
    (again,) = (one for one in after["rows"] if "detail" in one)
    assert after["commit"] == "that of the measurement"
    assert again["value"] == row["value"] == 12
    assert again["beside"]["predicted"] == 13
    assert row["beside"]["predicted"] != 13
