"""Marks of a judge for written texts, by LongBench-Write's six dimensions.

    python -m recipes.long_writer.judge --answers answers.jsonl --endpoint http://localhost:8000/v1 --out marks.jsonl
    python -m recipes.long_writer.judge --answers out/predictions.jsonl --prompts longbench_write.jsonl --endpoint ...

`--answers` holds {"messages": [...]} a line, whose last answer is judged; or it is what `hf-longctx eval` wrote for a
file of LongBench-Write, with that file as `--prompts`. Every reply is kept beside `--out`, so that no request is made
twice: the same command continues an interrupted run.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hf_longctx.evaluation.benchmarks import longwriter
from hf_longctx.evaluation.judge import DIMENSIONS, judge_prompt, quality_score, read_marks
from hf_longctx.evaluation.records import Record, records
from hf_longctx.storage.files import claimed, write_json_lines
from hf_longctx.training.packing.jsonl import checked_messages
from recipes.long_writer.asking import add_options, check_options, check_own, file_of_replies, in_order
from recipes.long_writer.endpoint import Endpoint
from recipes.long_writer.kept_replies import KeptReplies
from recipes.long_writer.replies import LeftOut, Reply, Unreachable, Unusable, until_usable
from recipes.outs import new_file

ROOM = 4096  # tokens of a reply: a reasoning judge thinks before it marks


class Judged(NamedTuple):
    """A text to be judged: where it stands, of which configuration it is, what was asked for, and what was written."""

    name: str
    configuration: str
    request: str
    text: str


def read_answers(path: Path, prompts: Path | None = None) -> list[Judged]:
    """The texts of a file of chats, or of predictions with the benchmark's file of their prompts.

    Raises:
        ValueError: A line is neither, a prediction has no prompt, or there is no text.
        OSError: A file cannot be read.
    """
    asked = {} if prompts is None else {one.id: one.context for one in longwriter.read(prompts)}
    found = list(_read(path, asked))
    if not found:
        raise ValueError(f"{path}: there is no text to judge. Expected lines with messages, or predictions.")
    return found


def _read(path: Path, asked: dict[str, str]) -> Iterator[Judged]:
    for record in records(path):
        where = f"line {record.line}"
        if "prediction" in record.data:
            where += f", sample {record['id']}"
            yield Judged(where, record.optional("configuration"), _prompt(record, asked), record.text("prediction"))
            continue
        messages = checked_messages(record.data, f"{path}, line {record.line}")
        last = max(i for i, one in enumerate(messages) if one["role"] == "assistant")
        request = "\n\n".join(one["content"] for one in messages[:last])
        yield Judged(where, record.optional("form"), request, messages[last]["content"])


def _prompt(record: Record, asked: dict[str, str]) -> str:
    if record.name("id") not in asked:
        raise record.wrong(
            f"no prompt for the prediction of sample {record['id']!r}. Give --prompts, the benchmark's file that "
            "`hf-longctx eval` read."
        )
    return asked[record.name("id")]


def judged(judge: KeptReplies, one: Judged, tries: int) -> dict[str, Any]:
    """The marks of a text and their S_q; or why there are none."""

    def marks(reply: Reply) -> dict[str, int]:
        try:
            return read_marks(reply.answer)
        except ValueError as error:
            raise Unusable(str(error)) from None

    row = {"name": one.name, "configuration": one.configuration}
    if not one.text.strip():  # an empty text needs no judge
        return {**row, "marks": dict.fromkeys(DIMENSIONS, 1), "quality": 0.0}
    try:
        found = until_usable(judge, judge_prompt(one.request, one.text), ROOM, marks, "the marks", tries)
    except LeftOut as why:
        return {**row, "marks": None, "quality": None, "why": str(why)}
    return {**row, "marks": found, "quality": quality_score(found)}


def run(answers: Sequence[Judged], judge: KeptReplies, tries: int, workers: int) -> list[dict[str, Any]]:
    """The rows of `judged`, in the order of the texts.

    Raises:
        Unreachable: The judge no longer answers. What it has answered is kept.
    """
    return in_order(lambda one: judged(judge, one, tries), answers, judge, workers)


def summary(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines with the mean S_q, and the mean mark of each dimension, by configuration."""
    for name, count in Counter(row["configuration"] for row in rows).items():
        some = [row for row in rows if row["configuration"] == name and row["marks"]]
        label = name or "all"
        if some:
            means = {one: statistics.fmean(row["marks"][one] for row in some) for one in DIMENSIONS}
            quality = 100 * statistics.fmean(row["quality"] for row in some)
            yield f"{label}: S_q {quality:.1f} of {len(some)} texts"
            yield "    " + ", ".join(f"{one} {mark:.2f}" for one, mark in means.items())
        if count > len(some):
            yield f"{label}: {count - len(some)} texts have no marks, and are in no mean"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command, see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, required=True, help="a .jsonl of chats, or a predictions.jsonl")
    parser.add_argument("--prompts", type=Path, help="the benchmark's file, for a predictions.jsonl")
    parser.add_argument("--endpoint", metavar="URL", required=True, help="an OpenAI-compatible one, up to /v1")
    parser.add_argument("--model", help="the name of the served judge; not needed where only one is served")
    parser.add_argument("--out", type=new_file, required=True, help="a .jsonl of marks; replies are kept beside it")
    add_options(parser)
    given = parser.parse_args(arguments)
    kept = file_of_replies(given.out)
    try:
        check_options(given)
        check_own(given.out)
        answers = read_answers(given.answers, given.prompts)
        served = Endpoint(given.endpoint, given.model, temperature=0, timeout=given.timeout, retries=given.retries)
        with claimed(kept, "--out", file=True):
            rows = run(answers, KeptReplies(served, kept, {"judge": served.model}), given.tries, given.workers)
        write_json_lines(given.out, rows)
    except Unreachable as error:
        parser.exit(2, f"{error} The replies so far are in {kept}: the same command continues from them.\n")
    except (ValueError, OSError, ImportError) as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"Interrupted. The replies so far are in {kept}: the same command continues from them.\n")
    print(*summary(rows), sep="\n")


if __name__ == "__main__":
    main()
