"""Pictures of asked and written words from the files of the recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.evaluation.report.lengths import Written
from recipes.long_writer.length_pictures import main, read_lengths


def cell(form: str, asked: int, *words: int) -> dict[str, Any]:
    """As score.py writes it."""
    return {"form": form, "asked": asked, "words": list(words), "ended": [1.0] * (len(words) - 1) + [0.0]}


SCORES = {"tasks": [], "writing": [cell("plain", 500, 480, 9), cell("plain", 1000, 1010), cell("counted", 500, 499, 0)]}
REPORT = {"hardware": "a CPU", "lines": {"untrained": SCORES, "sft": SCORES}, "rows": []}


def test_a_picture_for_each_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, scores = tmp_path / "report.json", tmp_path / "scores.json"
    report.write_text(json.dumps(REPORT))
    scores.write_text(json.dumps({"hardware": "a GPU", "model": "dpo", "scores": SCORES}))
    forms, hardware = read_lengths([report, scores])
    assert hardware == "a CPU, a GPU"
    assert list(forms) == ["plain", "counted"]
    assert list(forms["plain"]) == ["untrained", "sft", "dpo"]
    assert forms["plain"]["sft"] == [Written(500, 480, True), Written(500, 9, False), Written(1000, 1010, False)]
    main([str(report), str(scores), "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out.split() == [str(tmp_path / f"out/lengths-{form}.png") for form in forms]
    assert all((tmp_path / f"out/lengths-{form}.png").read_bytes().startswith(b"\x89PNG") for form in forms)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("no json", "no scores of writing can be read"),
        ("[]", "no scores of writing can be read"),
        ('{"rows": []}', "KeyError: 'model'"),
        (json.dumps(REPORT | {"lines": {"sft": {"writing": [{"form": "plain"}]}}}), "KeyError: 'words'"),
        (json.dumps(REPORT | {"lines": {"sft": {"writing": []}}}), "writing was not scored. Give --writing"),
        (None, "No such file"),
    ],
)
def test_files_without_scores_of_writing(
    data: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"
    if data is not None:
        file.write_text(data)
    with pytest.raises(SystemExit):
        main([str(file), "--out", str(tmp_path / "out")])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
