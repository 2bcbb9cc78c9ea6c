"""What the records say, in the words of README.md and docs/versions.md, which `make tables` renders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from packaging.version import Version

from recipes.compat.record import PACKAGES, RECORDS

OLD = timedelta(days=30)


def records(folder: Path = RECORDS) -> list[dict[str, Any]]:
    """All records, by package, the newest release first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*-*.json")]
    newest_first = sorted(found, key=lambda one: Version(one["version"]), reverse=True)
    return sorted(newest_first, key=lambda one: PACKAGES.index(one["package"]))


def passing(folder: Path = RECORDS) -> tuple[str, ...]:
    """The minor releases of transformers of which a record has no failure, the oldest first."""
    passed = [one for one in records(folder) if one["package"] == "transformers" and not one["failed"]]
    minors = {Version(one["version"]).release[:2] for one in passed}
    return tuple(f"{major}.{minor}" for major, minor in sorted(minors))


def versions_text(name: str, folder: Path = RECORDS) -> str:
    """The text of a block: `sentence` or `table`."""
    return {"sentence": _sentence, "table": _table}[name](folder)


def _sentence(folder: Path) -> str:
    *others, newest = passing(folder)
    return f"Tested with transformers {' and '.join(filter(None, [', '.join(others), newest]))}.\n"


def _table(folder: Path) -> str:
    head = "package", "release", "tests of the contract", "beside", "tested"
    lines = [head, ["---"] * len(head), *map(_row, records(folder))]
    return "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n"


def _row(one: dict[str, Any]) -> list[str]:
    ran = one["passed"] + one["failed"]
    ended = f"all {ran} pass" if not one["failed"] else f"{one['failed']} of {ran} fail, first {one['first_failure']}"
    beside = [f"{name} {v}" for name, v in one["versions"].items() if name not in (one["package"], "hf_longctx")]
    when = f"{one['date'][:10]}, commit {one['commit'][:12]}"
    return [one["package"], one["version"], ended.replace("|", "\\|"), ", ".join(beside), when]


def old_records(folder: Path = RECORDS, now: datetime | None = None) -> Iterator[str]:
    """A sentence for each package whose latest record is older than 30 days: releases since then are not in it."""
    now = now or datetime.now(timezone.utc)
    for package in PACKAGES:
        dates = [datetime.fromisoformat(one["date"]) for one in records(folder) if one["package"] == package]
        if dates and now - max(dates) > OLD:
            yield f"{package}: the latest record is of {max(dates):%Y-%m-%d}. Run `make newest-record`."
