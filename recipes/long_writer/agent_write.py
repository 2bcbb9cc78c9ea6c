"""AgentWrite: long answers to instructions, planned and written step by step by a model, as chats to train on.

    python -m recipes.long_writer.agent_write --instructions FILE --endpoint http://localhost:8000/v1 --out chats.jsonl
    python -m recipes.long_writer.agent_write --instructions FILE --model DIR --out chats.jsonl

Bai et al. 2024 (https://arxiv.org/abs/2408.07055, section 3). See README.md beside this file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_longctx.evaluation.benchmarks.longwriter import n_words
from hf_longctx.evaluation.records import records
from hf_longctx.storage import claimed, weights_digest
from hf_longctx.storage.files import write_json_lines
from hf_longctx.text import lines_of, load_text
from recipes.outs import new_file

from .agent_write_model import LocalModel
from .agent_write_plan import asked_words
from .agent_write_steps import written
from .asking import add_options, check_options, check_own, file_of_replies, in_order
from .endpoint import Endpoint
from .kept_replies import KeptReplies
from .replies import LeftOut, Unreachable, encodable


@dataclass(frozen=True)
class Instruction:
    """What is asked for, its number of words if it has one, and the line where it stands."""

    text: str
    words: int | None
    line: int


def read_instructions(path: Path) -> list[Instruction]:
    """Those of a .jsonl of {"prompt", "length" in words, which may be missing}, or of a text file, one on each line.

    The same instruction is taken once. ValueError where there are none, or a line is something else.
    """
    found: dict[str, Instruction] = {}
    for one in _from_json(path) if path.suffix == ".jsonl" else _from_text(path):
        found.setdefault(one.text, one)
    if not found:
        raise ValueError(f"{path}: no instructions. Expected one on each line, or a .jsonl of {{'prompt': ...}}.")
    return list(found.values())


def _from_json(path: Path) -> Iterator[Instruction]:
    for record in records(path, ("prompt",)):
        text = encodable(record.text("prompt").strip())
        words = record.number("length") if record.get("length") is not None else asked_words(text)
        if not text or (words is not None and words < 1):
            raise record.wrong("expected a 'prompt' that is not empty, and a 'length' of at least 1 word.")
        yield Instruction(text, words, record.line)


def _from_text(path: Path) -> Iterator[Instruction]:
    for line, text in enumerate(lines_of(load_text(path, holds="instructions in it")), 1):
        if text.strip():
            yield Instruction(text.strip(), asked_words(text), line)


def run(instructions: list[Instruction], writer: KeptReplies, tries: int = 3, workers: int = 1) -> list[dict[str, Any]]:
    """A chat for each instruction in their order; one for which no text can be written has "left out" instead.

    Raises:
        Unreachable: The model no longer answers. What it has answered is kept.
    """

    def one(asked: Instruction) -> dict[str, Any]:
        try:
            text = written(writer, asked.text, asked.words, tries)
        except LeftOut as why:
            return {"line": asked.line, "left out": str(why)}
        chat = [{"role": "user", "content": asked.text}, {"role": "assistant", "content": text}]
        return {"messages": chat, "words": asked.words, "written": n_words(text)}

    return in_order(one, instructions, writer, workers)


def main(words: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instructions", type=Path, required=True, help="a text file, one on each line, or a .jsonl")
    parser.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible one, up to /v1")
    parser.add_argument("--model", help="a folder or Hub id; with --endpoint, the name of the served model")
    parser.add_argument("--out", type=new_file, required=True, help="a .jsonl of chats; replies are kept beside it")
    parser.add_argument("--temperature", type=float, default=1.0)
    add_options(parser)
    args = parser.parse_args(words)
    kept = file_of_replies(args.out)
    try:
        check(args)
        instructions = read_instructions(args.instructions)
        with claimed(kept, "--out", file=True):
            return finish(run(instructions, made(args, kept), args.tries, args.workers if args.endpoint else 1), args)
    except Unreachable as error:
        told, code = f"{error} Its replies so far are in {kept}: the same command goes on from them.", 2
    except (ValueError, OSError, ImportError) as error:
        told, code = getattr(error, "strerror", None) or str(error), 2
    except KeyboardInterrupt:
        told, code = f"Interrupted. The replies so far are in {kept}: the same command goes on from them.", 130
    print(told, file=sys.stderr)
    return code


def check(args: argparse.Namespace) -> None:
    """ValueError for options that do not go together, and for a file that is not of such a run."""
    if not args.endpoint and not args.model:
        raise ValueError("who writes? Give --endpoint URL or --model DIR.")
    if args.temperature < 0:
        raise ValueError(f"--temperature {args.temperature}: expected at least 0.")
    check_options(args)
    check_own(args.out)


def made(args: argparse.Namespace, kept: Path) -> KeptReplies:
    """The model that the options name."""
    how = {"temperature": args.temperature}
    if args.endpoint:
        served = Endpoint(args.endpoint, args.model, timeout=args.timeout, retries=args.retries, **how)
        return KeptReplies(served, kept, {"served model": served.model, **how})
    local = LocalModel(args.model, **how)
    return KeptReplies(local, kept, {"weights": weights_digest(local.model), **how})


def finish(rows: list[dict[str, Any]], args: argparse.Namespace) -> int:
    """Write the chats, and say what was left out; 1 if there is no chat."""
    for row in rows:
        if "left out" in row:
            print(f"{args.instructions}, line {row['line']}: left out: {row['left out']}.", file=sys.stderr)
    chats = [row for row in rows if "messages" in row]
    if not chats:
        print("No text could be written, so there is no file.", file=sys.stderr)
        return 1
    write_json_lines(args.out, chats)
    ratios = [row["written"] / row["words"] for row in chats if row["words"]]
    told = f"; median of written over asked words {statistics.median(ratios):.2f}" if ratios else ""
    print(f"Wrote {len(chats)} of {len(rows)} texts to {args.out}{told}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
