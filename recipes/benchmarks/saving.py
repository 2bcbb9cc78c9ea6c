"""A result file that several calls fill: a benchmark takes longer than a machine may be held at once."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hf_longctx.evaluation.results import result_file, write_results
from hf_longctx.storage.files import check_folder

HIDDEN = ("--model", "--documents", "--commit", "--out", "--seconds", "--older")  # paths and conditions of one machine
SAME = ("commit", "hardware", "versions", "model")


class Saved:
    """A result file. Rows of an earlier call under the same conditions stay, unless measured again.

    Args:
        path: The file.
        module: The benchmark's name, as its command has it.
        label: The model, and how it was run.
        device: Where.
        commit: In place of that of the checkout.
        cards: How many GPUs the benchmark takes.
    """

    def __init__(self, path: Path, module: str, label: str, device: str, commit: str | None, cards: int = 1) -> None:
        check_folder(path.parent)
        self.path = path
        self.data = result_file([], model=label, device=device, command=_command(module))
        if device == "cuda" and cards > 1:
            self.data["hardware"] = f"{min(torch.cuda.device_count(), cards)}x {self.data['hardware']}"
        if commit:
            self.data["commit"] = commit
        self.rows: dict[str, dict[str, Any]] = {}
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if before and all(before[name] == self.data[name] for name in SAME):
            self.rows = {row["what"]: row for row in before["rows"]}
            commands = [*before["command"].split(" && "), self.data["command"]]
            self.data["command"] = " && ".join(dict.fromkeys(commands))

    def add(self, rows: Iterator[dict[str, Any]]) -> None:
        """Print each row, and write the file with it."""
        for found in rows:
            print(found["what"], found["value"], found["bar"], found["holds"], found["why"] or "", flush=True)
            self.rows[found["what"]] = found
            write_results(self.path, self.data | {"rows": list(self.rows.values())})


def _command(module: str) -> str:
    """The command without paths on one machine."""
    parts, skip = ["python", "-m", f"recipes.benchmarks.{module}"], False
    for word in sys.argv[1:]:
        if not skip and word.partition("=")[0] not in HIDDEN:
            parts.append(word)
        skip = not skip and word in HIDDEN
    return shlex.join(parts)
