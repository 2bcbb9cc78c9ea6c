"""A process that gets a line of JSON and answers with one, as often as it is told to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


class Lines:
    """Runs `code` in a process of its own; its answers and what it writes to stderr must hold none of `secrets`."""

    def __init__(self, code: str, environment: dict[str, str], errors: Path, secrets: tuple[str, ...]) -> None:
        self.errors, self.secrets = errors, secrets
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            **{"text": True, "env": environment, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE},
            stderr=errors.open("w"),
        )

    def tell(self, what: Any) -> Any:
        """Its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.errors.read_text()
        assert not any(secret in line for secret in self.secrets)
        return json.loads(line)

    def end(self) -> None:
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        assert not any(secret in self.errors.read_text() for secret in self.secrets)
