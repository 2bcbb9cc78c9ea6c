"""Starts a Hub, fills it, and runs the loads, each in a process with a cache of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.hub.matrix.judging import Judged, judge
from tests.hub.matrix.making import STAGES
from tests.hub.matrix.references import CHAT, IDS, STEPS, Reference, references
from tests.hub.matrix.rows import Row, groups
from tests.hub.server import Hub

HERE = Path(__file__).resolve().parents[3]  # where `tests` and hf_longctx are


class Published:
    """Models in folders and on a Hub, and what they must say."""

    def __init__(self, hub: Hub, root: Path) -> None:
        self.hub, self.root = hub, root
        for stage in STAGES:
            self._run("making", stage, str(root), token="good")
        self.references: dict[tuple[str, bool], Reference] = references(root)

    def judged(self, wanted: list[Row], processes: int = 1, together: int = 1) -> Iterator[Judged]:
        """Every row, as it is done; at most `together` of them in one process, and only where that changes nothing."""
        with ThreadPoolExecutor(processes) as pool:
            for group, answers in pool.map(lambda group: (group, self._answers(group)), groups(wanted, together)):
                for row, answer in zip(group, answers, strict=True):
                    yield judge(row, answer, self.references)

    def _answers(self, group: list[Row]) -> list[dict[str, Any]]:
        spec = {"ids": IDS[0].tolist(), "steps": STEPS, "chat": CHAT, "package": group[0].package}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "spec.json"
            file.write_text(json.dumps({**spec, "rows": [self._asked(row) for row in group]}), encoding="utf-8")
            return self._run("probe", str(file), token=group[0].token)

    def _asked(self, row: Row) -> dict[str, Any]:
        """The row as the probe reads it."""
        folder = self.root / row.published
        return {
            "name": row.name,
            "way": row.way,
            "where": str(folder) if row.place == "folder" else f"tester/{row.published}",
            "base": "tester/dual" if row.place == "id" else str(self.root / "dual"),
            "before": str(self.root / row.before) if row.before else None,
            "trust_remote_code": row.trust,
            "revision": row.revision,
        }

    def _run(self, module: str, *args: str, token: str | None) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as home:
            environment = {**self.hub.environment(token, home=Path(home)), "PYTHONPATH": str(HERE)}
            command = [sys.executable, "-m", f"tests.hub.matrix.{module}", *args]
            done = subprocess.run(command, env=environment, cwd=HERE, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise RuntimeError(f"{module} {args} failed:\n{done.stderr[-3000:]}")
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@contextmanager
def publish(root: Path) -> Iterator[Published]:
    """A Hub with all models on it, and the folders in `root`."""
    with Hub() as hub:
        hub.users["good"] = "tester"
        yield Published(hub, root)
