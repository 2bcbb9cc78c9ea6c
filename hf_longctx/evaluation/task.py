"""A task, its cells, and their values.

A `Task` has the settings of a measurement, which are checked without a model. `prepare` makes its texts with a
tokenizer and gives a `Prepared`, whose cells are measured one by one and make the rows of a result file.
"""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch

from ..settings import Settings
from .sample import check_depth

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

At = tuple[Any, ...]  # a place in a task's grid: task, length, depth, document, as far as the task has them
Value = Mapping[str, Any]  # of a finished cell, as it is kept on disk
# {configuration: {place: value}}; None: it did not fit into memory
Values = Mapping[str, Mapping[At, Value | None]]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `evaluate` that all tasks have."""

    tasks: Sequence[str] = ()
    lengths: Sequence[int]
    depths: Sequence[float] | None = None
    text: str = "python-docs"
    seed: int = 0
    cache: str | Path | None = None

    def sorted(self) -> Request:
        """Lengths and depths in order, each once.

        Raises:
            ValueError: There is no length, or a length or depth is out of range.
        """
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths={list(self.lengths)}: give at least one, above 0.")
        for depth in self.depths or ():
            check_depth(depth)
        depths = None if self.depths is None else sorted({float(depth) for depth in self.depths})
        return replace(self, lengths=sorted(set(self.lengths)), depths=depths or None)


@dataclass(frozen=True)
class Cell:
    """A cell to be measured. Configurations may share one, and cells of one length batches."""

    key: tuple[Any, ...]  # what is computed, beginning with "stock" or "method"
    length: int  # tokens read
    size: int  # on the progress bar, in the task's `unit`


def setting(default: Any, help: str) -> Any:
    """A field of a task, with what `hf-longctx eval --list` says of it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Task(Settings, ABC):
    """Base of every measurement. Its fields are its settings, each made with `setting`."""

    at_least: ClassVar[int] = 1  # tokens of a window that are scored or generated: it has to hold more
    about: ClassVar[str] = ""  # one line for the list of tasks
    asks: ClassVar[bool] = False  # asks questions about documents, which a procedure around `generate` can answer

    def check(self, request: Request) -> None:
        """Find what no tokenizer could make of the settings and a request. The default checks nothing.

        Raises:
            ValueError: A setting or the request is out of range.
            ImportError: A package that the texts, the scores or the figures are made with is missing.
        """

    @abstractmethod
    def prepare(self, tokenizer: PreTrainedTokenizerBase, request: Request) -> Prepared:
        """Make the texts; ValueError where they are too short, or a length is too short for the task."""

    def probe(self, tokenizer: PreTrainedTokenizerBase, request: Request) -> None:
        """`prepare` as far as it takes to find its errors, before a model is loaded."""
        self.prepare(tokenizer, request)

    @classmethod
    def settings_help(cls) -> dict[str, str]:
        """{setting: description and default}."""
        default = {one.name: "" if one.default is None else f" Default: {one.default}." for one in fields(cls)}
        return {one.name: f"{one.metadata['help']}{default[one.name]}" for one in fields(cls)}


class Prepared(ABC):
    """A task with its texts: what its cells are, how one is measured, and what the rows say."""

    unit: ClassVar[str] = "tokens"  # what progress counts
    asked: Mapping[str, Any] = {}  # what else than `settings` tells this run from others
    notes: Mapping[str, Any] = {}  # what the result file records besides, which does not tell runs apart

    @abstractmethod
    def settings(self, window: int) -> dict[str, Any]:
        """What the result file records; runs that differ in it are never mixed."""

    @abstractmethod
    def places(self) -> list[At]:
        """The places of the grid, in the order of the rows."""

    @abstractmethod
    def cell(self, kind: str, at: At, window: int | None) -> Cell:
        """The cell of a place for "stock" or "method"; with a window, of the last tokens that fit it.

        Raises:
            ValueError: The window has no room for the place's answer.
        """

    def measure(
        self,
        model: Any,
        cells: Sequence[Cell],
        progress: Callable[[int], None],
        extra: Mapping[str, Any],
        reads_documents: bool,
    ) -> Iterator[tuple[Cell, Value | None]]:
        """Cells of one length and kind with their values as they are finished; None: it did not fit into memory.

        The method, if one is measured, is running: `extra` are its arguments of `generate`, and with `reads_documents`
        it is told where a prompt's document is. `progress` is called with the size of the work since its last call.
        """
        for cell in cells:
            value, seconds, peak = attempt(lambda: self.value(model, cell, progress), model.device)  # noqa: B023
            yield cell, None if value is None else {**value, "seconds": round(seconds, 3), "peak_gib": peak}

    def value(self, model: Any, cell: Cell, progress: Callable[[int], None]) -> Value:
        """Measure one cell. For tasks that do not batch cells, which implement `measure` instead."""
        raise NotImplementedError

    @abstractmethod
    def rows(self, values: Values, window: int) -> list[dict[str, Any]]:
        """The rows of the result file, see `results.row`."""

    def write(self, out: Path, results: Mapping[str, Any], values: Values) -> None:  # noqa: B027  # optional
        """Further files beside `results.json`. The default writes none."""


def cost(found: Mapping[str, Sequence[Value | None]]) -> dict[str, dict[str, float | None]]:
    """Seconds summed and peak memory by configuration, for those whose values are all there."""
    done = {name: [value for value in many if value] for name, many in found.items() if None not in many}
    peaks = {name: max((value["peak_gib"] or 0.0 for value in many), default=0.0) for name, many in done.items()}
    return {
        "seconds": {name: sum(value["seconds"] for value in many) for name, many in done.items()},
        "peak_gib": {name: peak or None for name, peak in peaks.items()},
    }


def digest(data: bytes) -> str:
    """A short hash of token ids, so that a run is never mixed with one on others."""
    return hashlib.sha256(data).hexdigest()[:16]


def attempt(work: Callable[[], T], device: torch.device) -> tuple[T | None, float, float | None]:
    """The result of `work`, None if the GPU's memory did not suffice; its seconds; and its peak memory in GiB."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    start, result = time.perf_counter(), None
    with suppress(torch.OutOfMemoryError):
        result = work()
    if result is None and cuda:
        # outside the block, where the error would keep the failed pass's tensors alive
        torch.cuda.empty_cache()
    seconds = time.perf_counter() - start
    return result, seconds, round(torch.cuda.max_memory_allocated(device) / 2**30, 3) if cuda else None
