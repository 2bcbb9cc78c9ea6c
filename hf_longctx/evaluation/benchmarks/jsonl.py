"""The project's own schema, one `Sample` per line; kvpress' fields (`answer` for `answers`) are read as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..metrics import metrics, unknown
from ..records import Record, is_text, records
from ..sample import Sample

STRINGS = ("task", "context", "question", "metric", "instruction", "answer_prefix", "cut")
# other keys whose values are not turned into what they should be
TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
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
    data = dict(record.data)
    if "answers" not in data and "answer" in data:
        data["answers"] = data.pop("answer")
    data["id"] = record.name("id")
    for key in STRINGS:
        if not isinstance(data.get(key, ""), str):
            raise record.wrong(f"{key}={data[key]!r:.60}: expected a string.")
    for key, (kind, words) in TYPES.items():
        # a truth value is an int, too
        if key in data and (not isinstance(data[key], kind) or (kind is not bool and isinstance(data[key], bool))):
            raise record.wrong(f"{key}={data[key]!r:.60}: expected {words}.")
    for key, some in (("answers", data.get("answers")), ("stop", data.get("stop"))):
        wrong = [item for item in some if not is_text(item)] if isinstance(some, list) else []
        if wrong:
            raise record.wrong(f"{key} has {wrong[0]!r:.60} in it: expected {TYPES[key][1]}.")
    if not 0 <= (data.get("depth") or 0) <= 1:
        raise record.wrong(f"depth={data['depth']!r:.60}: expected {TYPES['depth'][1]}.")
    try:
        sample = Sample.from_dict(data)
    except KeyError as error:
        raise record.wrong(f"the key {error} is missing. There are: {', '.join(map(repr, data))}.") from None
    except (TypeError, ValueError) as error:
        raise record.wrong(str(error)) from None
    if sample.metric not in (known := metrics()):
        raise record.wrong(unknown(sample.metric, known))
    return sample
