"""The ledger of upstream defects: every entry is whole, and its defect is still there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LEDGER = Path(__file__).resolve().parents[2] / "patches"
ENTRIES = sorted(path.parent for path in LEDGER.glob("*/*/patch.toml"))
FIELDS = {"date", "package", "versions", "symptom", "reason", "upstream", "needed_by"}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_says_what_is_wrong_and_what_would_cure_it(entry: Path) -> None:
    toml = pytest.importorskip("tomllib")  # Python 3.11
    told = toml.loads((entry / "patch.toml").read_text(encoding="utf-8"))
    assert told.keys() >= FIELDS
    assert told["package"] == entry.parent.name
    assert told["upstream"].startswith("https://") or (told["upstream"] == "unreported" and told["report"].strip())
    assert (entry / "change.diff").read_text(encoding="utf-8").startswith("--- a/")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_defect_is_still_there(entry: Path) -> None:
    done = subprocess.run([sys.executable, entry / "repro.py"], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    assert done.returncode == 1, f"upstream has fixed it: delete {entry.relative_to(LEDGER)} and what works around it"
