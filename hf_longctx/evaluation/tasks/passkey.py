"""The pass key: a grid of lengths and depths, measured alone; and a task among others, with a chat template.

The grid's prompts are Landmark Attention's as they stand: a length is that of the prompt, exactly, made of token ids.
Among other tasks a pass key is a sample like theirs: a length is that of prompt, chat template and answer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...text.corpora import beginning_ids, is_large, load_text
from .. import passkey
from ..passkey import MAX_NEW_TOKENS, haystack_ids, passkey_cell, passkey_prompts, wilson_interval
from ..report import plots
from ..report.figure import write_figure
from ..rows import compared
from ..task import At, Cell, Prepared, Request, Task, Value, Values, cost, digest, setting
from .hidden import Hidden

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class PassKey(Hidden):
    """Landmark Attention's pass key (Mohtashami & Jaggi 2023), as a sample."""

    metric: ClassVar[str] = "first_integer"
    max_new_tokens: ClassVar[int] = 10

    def words(self, rng: random.Random) -> tuple[str, str, str, str, str]:
        """A new key in every sample."""
        key = str(rng.randrange(10_000, 100_000))
        question, _, prefix = passkey.QUESTION.partition("? ")
        return f"{passkey.TASK}\n", passkey.INFO.format(key=key), f"\n{question}?", f" {prefix}", key


@dataclass(frozen=True, kw_only=True)
class PasskeyGrid(Task):
    """See `passkey_cell`. Of a large file no more is read than prompts that have nothing in common take."""

    name: ClassVar[str] = "passkey"
    about: ClassVar[str] = "a number hidden at every depth of a text, by length"
    trials: int = setting(10, "Prompts per cell.")
    haystack: str = setting("filler", 'What the key is hidden in: "filler", or "text" for --text.')
    batch_size: int = setting(1, "Prompts per call of generate.")
    prefill_chunk_size: int | None = setting(None, "Tokens of a prompt that one forward pass reads.")
    at_least: ClassVar[int] = MAX_NEW_TOKENS

    def check(self, request: Request) -> None:
        """ValueError for a setting that is out of range."""
        plots.require_matplotlib()
        if self.haystack not in ("filler", "text"):
            raise ValueError(f'haystack="{self.haystack}": expected "filler", or "text" to hide the key in text=.')
        for name in ("trials", "batch_size", "prefill_chunk_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1.")

    def prepare(self, tokenizer: PreTrainedTokenizerBase, request: Request) -> Prepared:
        """Read the text, and see that the shortest length holds a prompt."""
        return _Prompts(self, tokenizer, request)


class _Prompts(Prepared):
    def __init__(self, task: PasskeyGrid, tokenizer: PreTrainedTokenizerBase, request: Request) -> None:
        self.task, self.request, self.tokenizer = task, request, tokenizer
        self.depths = DEPTHS if request.depths is None else request.depths
        text: str | Sequence[int] = "filler"
        if task.haystack == "text":
            most = max(request.lengths) * task.trials
            text = beginning_ids(tokenizer, request.text, most) if is_large(request.text) else load_text(request.text)
        self.hay = haystack_ids(tokenizer, text)
        for depth in self.depths:
            passkey_prompts(
                tokenizer, min(request.lengths), depth, trials=task.trials, seed=request.seed, haystack=self.hay
            )

    def settings(self, window: int) -> dict[str, Any]:
        task, text = self.task, Path(self.request.text).name
        told = {"text": "filler" if task.haystack == "filler" else text, "trials": task.trials}
        token_ids = digest(json.dumps(self.hay).encode())
        return {**told, "prefill_chunk_size": task.prefill_chunk_size, "token_ids": token_ids}

    def places(self) -> list[At]:
        return [(length, depth) for length in self.request.lengths for depth in self.depths]

    def cell(self, kind: str, at: At, window: int | None) -> Cell:
        length, depth = at
        # The answer has to fit the window as well.
        keep = window - MAX_NEW_TOKENS if window and window - MAX_NEW_TOKENS < length else None
        return Cell((kind, length, depth, keep), length, length * self.task.trials)

    def value(self, model: Any, cell: Cell, progress: Callable[[int], None]) -> Value:
        _, length, depth, keep = cell.key
        found = passkey_cell(
            model,
            self.tokenizer,
            length,
            depth,
            trials=self.task.trials,
            seed=self.request.seed,
            haystack="filler" if self.task.haystack == "filler" else self.hay,
            batch_size=self.task.batch_size,
            keep_last=keep,
            prefill_chunk_size=self.task.prefill_chunk_size,
            progress=progress,
        )
        return {"correct": found.correct, "trials": found.trials}

    def rows(self, values: Values, window: int) -> list[dict[str, Any]]:
        return passkey_rows(values)

    def write(self, out: Path, results: Mapping[str, Any], values: Values) -> None:
        title = f"Passkey retrieval, % found (dashed: trained window, {plots.tokens(results['settings']['window'])})"
        write_figure(out, results, title, f"{self.task.trials} trials per cell, seed {self.request.seed}")


def passkey_rows(values: Values) -> list[dict[str, Any]]:
    """One row per length and depth."""
    rows = []
    for length, depth in next(iter(values.values())):
        found = {name: many[length, depth] for name, many in values.items()}
        done = {name: value for name, value in found.items() if value}
        share = {name: value["correct"] / value["trials"] if value else None for name, value in found.items()}
        detail = {"length": length, "depth": depth, **cost({name: [value] for name, value in found.items()})}
        detail |= {key: {name: value[key] for name, value in done.items()} for key in ("trials", "correct")}
        detail["wilson_95"] = {n: wilson_interval(v["correct"], v["trials"]) for n, v in done.items()}
        what = f"passkey found, {length:,} tokens, depth {depth:g}"
        rows.append(compared(what, share, "share of trials", why="out of memory", detail=detail))
    return rows


TASKS = {"passkey": lambda name, text: PassKey(name=name)}
ALONE = {"passkey": PasskeyGrid}
