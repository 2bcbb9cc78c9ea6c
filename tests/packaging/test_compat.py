"""The records of what passes on which release agree with what the package and the documents say."""

from __future__ import annotations

import json
import shutil
import warnings
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.upstream.versions import TESTED
from recipes.compat.documents import old_records, passing, records, versions_text
from recipes.compat.record import RECORDS, record

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import pytest

@pytest.mark.floor
def test_right():
    pass

@pytest.mark.floor
def test_left():
    assert 1 + 1 == {sum}, "a | b"

@pytest.mark.floor
def test_of_a_gpu():
    pytest.skip("no GPU")

def test_of_the_whole_suite():
    raise RuntimeError
"""


def copied(folder: Path, **changes: Any) -> Path:
    """The committed records in another folder; `changes` to the newest of transformers."""
    shutil.copytree(RECORDS, folder, ignore=lambda _, names: [name for name in names if not name.endswith(".json")])
    newest = records(folder)[0]
    path = folder / f"transformers-{newest['version']}.json"
    path.write_text(json.dumps({**newest, **changes}))
    return folder


def test_the_package_knows_as_tested_what_has_passed() -> None:
    assert passing() == TESTED


def test_the_pinned_releases_have_passed() -> None:
    lines = [line.partition(";")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    found = [one for one in records() if one["version"] == pinned[one["package"]]]
    assert "transformers" in [one["package"] for one in found], "run `make newest-record`"
    for one in found:
        assert (one["failed"], one["first_failure"]) == (0, None)
        assert one["passed"] > 300
        assert "dirty" not in one["commit"]


def test_an_old_record_warns() -> None:
    for told in old_records():
        warnings.warn(told, stacklevel=1)


def test_old_records_are_those_of_more_than_30_days() -> None:
    newest = max(datetime.fromisoformat(one["date"]) for one in records())
    assert list(old_records(now=newest + timedelta(days=29))) == []
    told = list(old_records(now=newest + timedelta(days=31)))
    assert [line.partition(":")[0] for line in told] == ["transformers", "peft", "accelerate"]
    assert "make newest-record" in told[0]


def test_a_release_that_fails_is_told_and_is_not_in_the_sentence(tmp_path: Path) -> None:
    folder = copied(tmp_path / "one", failed=2, passed=338, first_failure="tests/a.py::b: 1 | 2")
    assert passing(folder) == TESTED[:-1]
    assert TESTED[-1] not in versions_text("sentence", folder)
    assert "2 of 340 fail, first tests/a.py::b: 1 \\| 2" in versions_text("table", folder)


def test_the_sentence_of_one_release(tmp_path: Path) -> None:
    folder = copied(tmp_path / "one")
    for one in records(folder)[1:]:
        (folder / f"{one['package']}-{one['version']}.json").unlink()
    assert versions_text("sentence", folder) == f"Tested with transformers {TESTED[-1]}.\n"


@pytest.mark.parametrize(("total", "failed"), [(2, 0), (3, 1)])
def test_a_run_is_recorded_whether_it_passes_or_not(total: int, failed: int, tmp_path: Path) -> None:
    from importlib import metadata

    file = tmp_path / f"test_sum_{total}.py"  # pytest knows the files of this process by their names
    file.write_text(TESTS.format(sum=total))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  floor: short\n")
    assert record(["-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(file)], tmp_path) == failed
    (one, *_) = records(tmp_path)
    assert (one["version"], one["passed"], one["failed"], one["skipped"]) == (
        metadata.version("transformers"), 2 - failed, failed, 1,
    )  # fmt: skip
    assert {"torch", "python", "peft", "accelerate"} <= one["versions"].keys()
    assert datetime.fromisoformat(one["date"]) <= datetime.now(timezone.utc)
    told = one["first_failure"]
    assert told is None if not failed else "test_left" in told and "a | b" in told
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_a_run_without_tests_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing is recorded"):
        record(["--rootdir", str(tmp_path), str(tmp_path / "absent.py")], tmp_path)
    assert list(tmp_path.glob("*.json")) == []


def test_a_file_that_cannot_be_imported_is_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "test_imports.py"
    file.write_text("import no_such_package")
    assert record(["-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(file)], tmp_path) == 1
    assert "no_such_package" in records(tmp_path)[0]["first_failure"]


def test_ci_runs_the_newest_release_and_writes_no_record() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert "\nmake test-newest\n" in script
    assert "newest-record" not in script
