"""The tasks by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ...near import did_you_mean
from ...storage.files import write_whole
from ...storage.fingerprint import tokenizer_digest
from .counting import CommonWords, FrequentWords
from .haystack import Haystack
from .hidden import Needle, Number, PassKey
from .needles import Needles
from .questions import FILES, Questions
from .records import KeyValue, Lines
from .sample import Sample
from .task import Task
from .tracking import VariableTracking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1  # of the generators: a change of what they write gives the next one, so that old caches are left alone

# by name, from the text in which needles are hidden
_MADE: dict[str, Callable[[str, Haystack], Task]] = {
    "passkey": lambda name, text: PassKey(name=name),
    "number": lambda name, text: Number(name=name),
    "niah": lambda name, text: Needle(name=name, haystack=text),
    "kv": lambda name, text: KeyValue(name=name),
    "lines": lambda name, text: Lines(name=name),
    "niah_single_1": lambda name, text: Needles(name=name),
    "niah_single_2": lambda name, text: Needles(name=name, haystack=text),
    "niah_single_3": lambda name, text: Needles(name=name, haystack=text, value_kind="uuids"),
    "niah_multikey_1": lambda name, text: Needles(name=name, haystack=text, keys=4),
    "niah_multikey_2": lambda name, text: Needles(name=name, haystack="needles"),
    "niah_multikey_3": lambda name, text: Needles(name=name, haystack="needles", key_kind="uuids", value_kind="uuids"),
    "niah_multivalue": lambda name, text: Needles(name=name, haystack=text, values=4),
    "niah_multiquery": lambda name, text: Needles(name=name, haystack=text, queries=4),
    "vt": lambda name, text: VariableTracking(name=name),
    "cwe": lambda name, text: CommonWords(name=name),
    "fwe": lambda name, text: FrequentWords(name=name),
}
NAMES = (*_MADE, *FILES)
RULER = tuple(name for name in NAMES if name.startswith("niah_") or name in ("vt", "cwe", "fwe"))


def make_task(name: str, haystack: Haystack | str | None = None) -> Task:
    """A task by name; "qa_1:FILE" and "qa_2:FILE" read a local file.

    Args:
        name: One of `NAMES`.
        haystack: The text in which needles are hidden, for the tasks that hide them in one; CPython's language
            reference (`load_text("python-docs")`) by default.

    Raises:
        ValueError: There is no such task, or qa_1 or qa_2 is given without its file.
    """
    kind, _, path = name.partition(":")
    if kind in FILES and path:
        return Questions.of(kind, path)
    known_task(name)
    return _MADE[name](name, as_haystack(haystack))


def known_task(name: str) -> None:
    """ValueError if no task has this name, or it needs a file."""
    kind = name.partition(":")[0]
    if kind in FILES:
        raise ValueError(f"{kind} is made of a file that you have, {FILES[kind]}. Give it as {kind}:FILE.")
    if name not in _MADE:
        from ..readers.table import READERS  # which imports samples from here

        hint = did_you_mean(kind, (*NAMES, *READERS, "ruler", "ppl"), quoted=False)
        raise ValueError(
            f"task {name!r}: no such task. {hint}There are: {', '.join(NAMES)}; ruler, ppl; and READER:FILE, where "
            f"READER is one of {', '.join(READERS)}."
        )


def as_haystack(text: Haystack | str | None) -> Haystack:
    """A text as a `Haystack`; None: CPython's language reference."""
    from ...text.corpora import load_text

    if isinstance(text, Haystack):
        return text
    return Haystack.of(load_text("python-docs"), "python-docs") if text is None else Haystack.of(text)


def samples(
    task: str | Task,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    n: int,
    *,
    seed: int = 0,
    depth: float | None = None,
    haystack: Haystack | str | None = None,
    cache: str | Path | None = None,
) -> list[Sample]:
    """`n` samples of a task; see `Task.samples`.

    Args:
        task: A name from `NAMES`, or a task.
        tokenizer, length, n, seed, depth: As in `Task.samples`.
        haystack: As in `make_task`.
        cache: A folder. Samples that were made for the same tokenizer and arguments are read from it, and kept there.

    Raises:
        ValueError: As in `make_task` and `Task.samples`.
    """
    made = make_task(task, haystack) if isinstance(task, str) else task
    if cache is None:
        return made.samples(tokenizer, length, n, seed=seed, depth=depth)
    what = f"{VERSION} {made!r} {tokenizer_digest(tokenizer)} {length} {n} {seed} {depth}"
    path = Path(cache) / f"{made.name}-{length}-{hashlib.sha256(what.encode()).hexdigest()[:16]}.jsonl"
    if path.is_file():
        from ..readers.jsonl import read

        return list(read(path))
    found = made.samples(tokenizer, length, n, seed=seed, depth=depth)
    write_whole(path, "".join(json.dumps(sample.to_dict(), ensure_ascii=False) + "\n" for sample in found).encode())
    return found
