"""The project's own schema, one `Sample` per line; kvpress' fields (`answer` for `answers`) are read as well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..records import Record, is_text, records
from ..sample import Sample

REQUIRED = ("id", "task", "context", "question", "answers", "max_new_tokens", "metric")
# the types of all keys but `id`, which may be a number
TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(
        ("task", "context", "question", "metric", "instruction", "answer_prefix", "cut"), (str, "a string")
    ),
    "answers": ((str, list), "a string or a list of strings"),
    "max_new_tokens": (int, "a whole number"),
    "length": ((int, type(None)), "a whole number"),
    "depth": ((int, float, type(None)), "a number from 0 to 1"),
    "chat": (bool, "true or false"),
    "stop": (list, "a list of strings"),
    "meta": (dict, "an object"),
}


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of a file of JSON lines. ValueError names the file, the line and the key of what is wrong."""
    # the schema of all records before what their metrics need
    found = [(record, _sample(record)) for record in records(path)]
    for record, sample in found:
        yield record.checked(sample)


def _sample(record: Record) -> Sample:
    """The sample of a record; keys beyond the schema go into `meta`."""
    data = {"answers" if key == "answer" and "answers" not in record.data else key: v for key, v in record.data.items()}
    data["id"] = record.name("id")
    for key, (kind, words) in TYPES.items():
        # a truth value is an int, too
        if key in data and (not isinstance(data[key], kind) or (kind is not bool and isinstance(data[key], bool))):
            raise record.wrong(f"{key}={data[key]!r:.60}: expected {words}.")
    answers, stop = data.get("answers", []), data.get("stop", [])
    for key, some in (("answers", answers), ("stop", stop)):
        wrong = [item for item in some if not is_text(item)] if isinstance(some, list) else []
        if wrong:
            raise record.wrong(f"{key} has {wrong[0]!r:.60} in it: expected {TYPES[key][1]}.")
    if not 0 <= (data.get("depth") or 0) <= 1:
        raise record.wrong(f"depth={data['depth']!r:.60}: expected {TYPES['depth'][1]}.")
    for key in REQUIRED:
        replace(record, data=data)[key]
    more = {key: value for key, value in data.items() if key not in ("id", *TYPES)}
    data = {key: value for key, value in data.items() if key not in more}
    data |= {"answers": (answers,) if isinstance(answers, str) else tuple(map(str, answers)), "stop": tuple(stop)}
    try:
        return Sample(**data | {"meta": {**data.get("meta", {}), **more}})
    except ValueError as error:
        raise record.wrong(str(error)) from None
