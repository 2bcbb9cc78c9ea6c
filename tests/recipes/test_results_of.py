"""A trial does not write over what was measured."""

from argparse import Namespace
from pathlib import Path

import pytest

from recipes.benchmarks.reading import RESULTS, results_of
from recipes.far import others


@pytest.mark.parametrize("trial", [{"smoke": True}, {"tiny": True}, {"smoke": True, "tiny": False}])
def test_a_trial_writes_into_a_new_folder_that_it_names(
    trial: dict[str, bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (results_of(Namespace(out=None, **trial)) for _ in range(2))
    assert first != second
    assert not [*first.iterdir(), *second.iterdir()]
    assert str(first) in capsys.readouterr().out
    assert results_of(Namespace(out=tmp_path, **trial)) == tmp_path


def test_a_measurement_writes_where_results_are(tmp_path: Path) -> None:
    assert results_of(Namespace(out=None)) == RESULTS == results_of(Namespace(out=None, smoke=False, tiny=False))
    assert results_of(Namespace(out=tmp_path / "one.json", smoke=False)) == tmp_path / "one.json"


def test_a_trial_of_the_longest_step_leaves_the_result_file_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    file = RESULTS / "far_others.json"
    before = file.read_bytes()
    others.main(["--smoke"])
    assert file.read_bytes() == before
    assert "not among the results" in capsys.readouterr().out
