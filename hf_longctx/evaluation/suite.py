"""Questions about documents: any number of generated tasks and files of benchmarks in one run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..storage.files import write_whole
from ..storage.fingerprint import tokenizer_digest
from ..text.corpora import LARGE, beginning, is_large, load_text
from ..upstream.installing import check_packages
from . import tasks
from .benchmarks.longwriter import n_words
from .catalogue import RULER, check_name, make_task, packages, read, samples
from .folder import declared
from .haystack import Haystack
from .metrics import asks_words, check, scores, trimmed
from .prompts import answered
from .report import plots, scored
from .report.lengths import Written, length_figure
from .sample import Sample, encode
from .task import At, Cell, Prepared, Request, Task, Value, Values, setting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MADE = 25  # samples per cell by default
Samples = dict[tuple[str, int, float | None], list[Sample]]  # by task, length and depth


@dataclass(frozen=True, kw_only=True)
class Suite(Task):
    """Tasks and files by the names in `Request.tasks`; all tasks of a length share batches."""

    name: ClassVar[str] = "suite"
    about: ClassVar[str] = "tasks that ask questions, and files of benchmarks"
    asks: ClassVar[bool] = True
    samples: int | list[int] | None = setting(  # noqa: RUF009  # a field all the same
        None, "Samples per cell, or one number per length: 25,25,10; else 25 that are made, and all of a file."
    )
    batch_tokens: int | None = setting(
        None, "Prompt tokens per batch; else 262,144 on a GPU and one prompt on a CPU. A batch too large is halved."
    )
    batch_rows: int | None = setting(None, "Prompts per batch, at most: the limit of methods with constant memory.")
    prefill_tokens: int | None = setting(None, "Tokens of a batch that one forward pass reads; else all.")

    @staticmethod
    def check_names(names: Sequence[str]) -> None:
        """ValueError or FileNotFoundError for a task that does not exist and a file that is missing."""
        alone = declared(tasks, "ALONE").keys() - declared(tasks, "TASKS").keys()
        for name in names:
            if name in alone:
                raise ValueError(f"{name} is measured alone: give it without other tasks.")
            if name != "ruler":
                check_name(name)

    def check(self, request: Request) -> None:
        """ValueError for counts out of range, ImportError for a package that tasks are made with and is missing."""
        check_packages(packages(request.tasks))
        for name in ("batch_tokens", "batch_rows", "prefill_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1.")
        self._counts(request)

    def prepare(self, tokenizer: PreTrainedTokenizerBase, request: Request) -> Prepared:
        """Make the samples of every task, length and depth, and read those of files."""
        began = time.perf_counter()
        made = collect(tokenizer, request, self._counts(request))
        for (_, length, _), some in made.items():
            check(some)
            if any(asks_words(sample) for sample in some):
                plots.require_matplotlib()
            # those that were made for a length have its size; those of a file are cut to it
            for sample in some if some[0].length is None else ():
                _check_room(tokenizer, sample, length, "length")
        return _Questions(self, tokenizer, request, made, round(time.perf_counter() - began, 1))

    def probe(self, tokenizer: PreTrainedTokenizerBase, request: Request) -> None:
        """`prepare` for one sample of each task at the smallest length."""
        dataclasses.replace(self, samples=1).prepare(
            tokenizer, dataclasses.replace(request, lengths=request.lengths[:1])
        )

    def _counts(self, request: Request) -> dict[int, int | None]:
        """{length: samples}."""
        listed = isinstance(self.samples, list)
        many: list[Any] = self.samples if listed else [self.samples] * len(request.lengths)  # type: ignore[assignment]
        if len(many) != len(request.lengths):
            raise ValueError(
                f"samples={self.samples}: expected one number, or one for each of {len(request.lengths)} lengths."
            )
        if listed and list(request.lengths) != sorted(set(request.lengths)):
            raise ValueError(f"samples={many} belong to lengths, so give these in ascending order, each once.")
        if any(count is not None and (type(count) is not int or count < 1) for count in many):
            raise ValueError(f"samples={self.samples}: expected whole numbers, at least one sample per cell.")
        return dict(zip(request.lengths, many, strict=True))


def collect(tokenizer: PreTrainedTokenizerBase, request: Request, counts: Mapping[int, int | None]) -> Samples:
    """The samples of every task, length and depth; a file may bring several tasks.

    Raises:
        ValueError: A file is not in its format or holds no sample, or a length is too short for a task.
        OSError: A file is missing.
    """
    found: Samples = {}
    # of a large file, several times what the longest prompt takes
    most = max(LARGE, 32 * max(request.lengths))
    text = beginning(request.text, most) if is_large(request.text) else load_text(request.text)
    haystack = Haystack.of(text, Path(request.text).name)
    for name in dict.fromkeys(one for task in request.tasks for one in (RULER if task == "ruler" else (task,))):
        kind, _, path = name.partition(":")
        if path and kind not in declared(tasks, "FROM_FILE"):
            by_task: dict[str, list[Sample]] = {}
            for sample in read(kind, path):
                # whatever length it was made for, it is cut to those of this run
                by_task.setdefault(sample.task, []).append(dataclasses.replace(sample, length=None))
            if not by_task:
                raise ValueError(f"{path} holds no sample. Give a file with at least one.")
            for task, every in by_task.items():
                for length in request.lengths:
                    found[task, length, None] = list(islice(every, counts[length]))
            continue
        made = make_task(name, haystack)
        for length in request.lengths:
            n = counts[length] or MADE
            for depth in request.depths or (None,):
                some = samples(made, tokenizer, length, n, seed=request.seed, depth=depth, cache=request.cache)
                found[made.name, length, depth] = some
    return found


class _Questions(Prepared):
    unit = "prompts"

    def __init__(
        self, task: Suite, tokenizer: PreTrainedTokenizerBase, request: Request, made: Samples, seconds: float
    ) -> None:
        self.task, self.tokenizer, self.request, self.samples = task, tokenizer, request, made
        # the digest of the samples tells all of these apart, but not to a reader
        self.asked = {
            "lengths": list(request.lengths),
            "n": task.samples,
            "depths": request.depths and list(request.depths),
        }
        self.notes = {"seconds_making_samples": seconds}

    def settings(self, window: int) -> dict[str, Any]:
        told = {"tasks": list(self.request.tasks), "text": Path(self.request.text).name, "window": window}
        told |= {"prefill_tokens": self.task.prefill_tokens, "samples": _digest(self.samples)}
        return {**told, "tokenizer": tokenizer_digest(self.tokenizer)}

    def places(self) -> list[At]:
        return list(self.samples)

    def cell(self, kind: str, at: At, window: int | None) -> Cell:
        task, length, depth = at
        # within the window, truncation is the stock model itself
        keep = window if window and length > window else None
        some = self.samples[task, length, depth]
        if keep is not None:
            for sample in some if some[0].length is None else some[:1]:
                _check_room(self.tokenizer, sample, keep, "window")
        return Cell((kind, task, length, depth, keep), length, len(some))

    def measure(
        self,
        model: Any,
        cells: Sequence[Cell],
        progress: Callable[[int], None],
        extra: Mapping[str, Any],
        reads_documents: bool,
    ) -> Iterator[tuple[Cell, Value | None]]:
        tokens = self.task.batch_tokens or (2**18 if model.device.type == "cuda" else 1)
        limits = tokens, self.task.batch_rows, self.task.prefill_tokens
        asked = {cell: self.samples[cell.key[1:4]] for cell in cells}
        for cell, said, cost in answered(model, self.tokenizer, asked, limits, progress, extra, reads_documents):
            if said is None:
                yield cell, None
                continue
            total, each = scores(said, asked[cell])
            yield cell, {"score": total, "scores": each, "groups": _groups(asked[cell], each), "said": said, **cost}

    def rows(self, values: Values, window: int) -> list[dict[str, Any]]:
        return scored.rows(values, window)

    def write(self, out: Path, results: Mapping[str, Any], values: Values) -> None:
        """Every answer, a JSON object per line, for judges and for reading; a figure where lengths are scored."""
        lines, lengths = [], dict[str, list[Written]]()
        for name, many in values.items():
            for at, value in many.items():
                if value is None:
                    continue
                for i, sample in enumerate(self.samples[at]):
                    if asked := asks_words(sample):
                        words = n_words(trimmed(value["said"][i], sample))
                        label = name if len(self.request.lengths) == 1 else f"{name}, {at[1]:,} tokens"
                        lengths.setdefault(label, []).append(Written(asked, words))
                    line = {"configuration": name, "task": at[0], "length": at[1], "depth": at[2], "id": sample.id}
                    line |= {"answers": list(sample.answers), "prediction": value["said"][i], "metric": sample.metric}
                    lines.append(json.dumps({**line, "score": value["scores"][i]}, ensure_ascii=False))
        write_whole(out / "predictions.jsonl", "".join(f"{line}\n" for line in lines).encode())
        if lengths:
            about = f"{results['model']} on {results['hardware']}"
            figure = length_figure(lengths, title="Asked and written words", subtitle=about)
            plots.save(figure, out / "lengths.png")


def _check_room(tokenizer: Any, sample: Sample, room: int, name: str) -> None:
    """ValueError now for a prompt that would not fit after an hour of generating."""
    if room <= sample.max_new_tokens:
        other = ", or alone=True to leave the stock model out" if name == "window" else ""
        raise ValueError(
            f"{name}={room}: the answer to a sample of {sample.task} takes {sample.max_new_tokens} tokens of it. "
            f"Use a larger {name}{other}."
        )
    encode(tokenizer, sample, room - sample.max_new_tokens)


def _groups(samples: Sequence[Sample], each: Sequence[float | None]) -> dict[str, float]:
    """Mean scores of the parts that a benchmark reports, such as difficulties."""
    found: dict[str, list[float]] = {}
    for sample, score in zip(samples, each, strict=True):
        for group in sample.meta.get("groups", ()):
            if score is not None:
                found.setdefault(group, []).append(score)
    return {group: sum(some) / len(some) for group, some in sorted(found.items())}


def _digest(made: Samples) -> str:
    """A short hash of samples, so that a run is never mixed with one on others."""
    whole = hashlib.sha256()
    for at, some in made.items():
        whole.update(json.dumps([at, [sample.to_dict() for sample in some]], sort_keys=True).encode())
    return whole.hexdigest()[:16]
