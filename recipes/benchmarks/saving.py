"""A result file that several calls fill: a benchmark takes longer than a machine may be held at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hf_longctx.evaluation.results import result_file, write_results
from hf_longctx.storage.files import check_folder

from .reading import command_without_paths

HIDDEN = ("--seconds", "--older", "--keep")  # conditions of one machine, beside paths
SAME = ("hardware", "versions", "model")


class Saved:
    """A result file. Rows of an earlier call on the same hardware and versions stay, unless measured again.

    Those of an earlier commit name it, and the line below a table counts them: the ratio of a row is of one run.

    Args:
        path: The file.
        label: The model, and how it was run.
        device: Where.
        commit: In place of that of the checkout.
        cards: How many GPUs the benchmark takes.
    """

    def __init__(self, path: Path, label: str, device: str, commit: str | None, cards: int = 1) -> None:
        check_folder(path.parent)
        self.path = path
        self.data = result_file([], model=label, device=device, command=command_without_paths(HIDDEN))
        if device == "cuda" and cards > 1:
            self.data["hardware"] = f"{min(torch.cuda.device_count(), cards)}x {self.data['hardware']}"
        if commit:
            self.data["commit"] = commit
        self.rows: dict[str, dict[str, Any]] = {}
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if before and all(before[name] == self.data[name] for name in SAME):
            earlier = {} if before["commit"] == self.data["commit"] else {"commit": before["commit"]}
            self.rows = {row["what"]: earlier | row for row in before["rows"]}
            commands = [*before["command"].split(" && "), self.data["command"]]
            self.data["command"] = " && ".join(dict.fromkeys(commands))

    def add(self, rows: Iterator[dict[str, Any]]) -> None:
        """Print each row, and write the file with it."""
        for found in rows:
            print(found["what"], found["value"], found["bar"], found["holds"], found["why"] or "", flush=True)
            self.rows[found["what"]] = found
            write_results(self.path, self.data | {"rows": list(self.rows.values())})
