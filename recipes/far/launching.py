"""A command of the recipe in processes of its own, so that one that is out of memory does not end the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


def answer(words: Sequence[str], gpus: int) -> tuple[dict[str, Any] | None, str, int]:
    """The last line of JSON that `python -m WORDS` prints, on as many processes as GPUs; its errors, and exit code."""
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)] if gpus > 1 else []
    done = subprocess.run([sys.executable, *ranks, "-m", *words], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"')]
    return json.loads(lines[-1]) if lines else None, done.stderr, done.returncode


def last_line(errors: str) -> str:
    """What a process said last."""
    return (errors.strip().splitlines() or ["no output"])[-1]
