"""Runs the short form of the contract (`pytest -m floor`) and writes `<package>-<version>.json` for each package."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.evaluation.results import environment, write_results

RECORDS = Path(__file__).parent
PACKAGES = "transformers", "peft", "accelerate"


class Tally:
    """A plugin of pytest that counts how tests end, and keeps the first failure."""

    def __init__(self) -> None:
        self.ended = dict.fromkeys(("passed", "failed", "skipped"), 0)
        self.first_failure: str | None = None

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":  # a fixture that fails or skips ends the test
            self.count(report)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:  # a file that cannot be imported
            self.count(report)

    def count(self, report: Any) -> None:
        self.ended[report.outcome] += 1
        if report.failed and self.first_failure is None:
            crash = getattr(report.longrepr, "reprcrash", None)
            # else the last line of a traceback, whose others have paths
            said = crash.message if crash else str(report.longrepr).strip().rpartition("\n")[2].removeprefix("E ")
            self.first_failure = f"{report.nodeid}: {' '.join(said.split())[:300]}"


def record(arguments: list[str], folder: Path = RECORDS) -> int:
    """Run the tests and write a record of each package into `folder`; 1 if any test failed.

    Args:
        arguments: More for pytest.
        folder: Where the records go.

    Raises:
        SystemExit: pytest ended before it ran the tests: nothing is written.
    """
    before = environment()  # the commit of what is tested
    tally = Tally()
    code = pytest.main(["-m", "floor", "-q", *arguments], plugins=[tally])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and tally.first_failure is None:
        raise SystemExit(f"pytest ended with {code!r} and no test failed: nothing is recorded. See above.")
    versions = {name: metadata.version(name) for name in PACKAGES}
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    told = {**before, "date": date, "versions": {**before["versions"], **versions}}
    result = {**tally.ended, "first_failure": tally.first_failure}
    for name, version in versions.items():
        path = folder / f"{name}-{version}.json"
        command = "python -m recipes.compat"
        write_results(path, {"package": name, "version": version, "command": command, **told, **result})
        print(f"{path.name}: {tally.ended}", file=sys.stderr)
    return int(tally.first_failure is not None)
