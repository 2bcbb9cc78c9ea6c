"""A result file that several calls fill, also at once: a benchmark takes longer than a machine may be held at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hf_longctx.evaluation.results import result_file, write_results
from hf_longctx.storage.files import check_file, claimed

from .reading import command_without_paths

HIDDEN = ("--seconds", "--older", "--keep")  # conditions of one machine, beside paths
SAME = ("hardware", "versions", "model")
PATIENCE = 60.0  # seconds that another call may take to write its row

Rows = dict[str, dict[str, Any]]


class Saved:
    """A result file. Rows of another call on the same hardware and versions stay, unless measured again.

    Those of an earlier commit name it, and the line below a table counts them: the ratio of a row is of one run.

    Args:
        path: The file.
        label: The model, and how it was run.
        device: Where.
        commit: In place of that of the checkout.
        cards: How many GPUs the benchmark takes.
        arrange: Puts all rows in order, and may add some that follow from them. None: the order they came in.
        heading: Of the column of values, where they are not hf_longctx's.
    """

    def __init__(
        self,
        path: Path,
        label: str,
        device: str,
        commit: str | None,
        cards: int = 1,
        arrange: Callable[[Rows], list[dict[str, Any]]] | None = None,
        heading: str | None = None,
    ) -> None:
        check_file(path)
        self.path, self.arrange = path, arrange or (lambda rows: list(rows.values()))
        self.data = result_file([], model=label, device=device, command=command_without_paths(HIDDEN))
        if device == "cuda" and cards > 1:
            self.data["hardware"] = f"{min(torch.cuda.device_count(), cards)}x {self.data['hardware']}"
        if commit:
            self.data["commit"] = commit
        if heading:
            self.data["heading"] = heading

    def add(self, rows: Iterator[dict[str, Any]]) -> None:
        """Print each row, and write the file with it and with what other calls have written by then."""
        for found in rows:
            print(found["what"], found["value"], found["bar"], found["holds"], found["why"] or "", flush=True)
            with claimed(self.path, self.path.name, file=True, wait=PATIENCE):
                self._write(found)

    def _write(self, found: dict[str, Any]) -> None:
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        before = json.loads(text) if text else None
        data, kept = self.data, Rows()
        other = [name for name in SAME if before and before[name] != data[name]]
        if other:
            told = "; ".join(f"{name} {before[name]}, here {data[name]}" for name in other)
            print(f"{self.path}: its {len(before['rows'])} rows are replaced, since they are of {told}.", flush=True)
        elif before:
            earlier = {} if before["commit"] == data["commit"] else {"commit": before["commit"]}
            kept = {row["what"]: earlier | row for row in before["rows"]}
            commands = [*before["command"].split(" && "), data["command"]]
            data = data | {"command": " && ".join(dict.fromkeys(commands))}
        kept[found["what"]] = found
        write_results(self.path, data | {"rows": self.arrange(kept)})
