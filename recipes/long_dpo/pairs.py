"""Pairs of answers to a prompt, a better and a worse one: read from a file, or made by rule.

    python -m recipes.long_dpo.pairs --tokens 4k --number 200 --out pairs.jsonl

Made ones are a right answer to a task of `hf_longctx.evaluation.tasks.long_output`, and the same one spoilt: it stops
early, skips a line, loops, or slips once. TRL ends every text with the end token: none here is one that never ends.
Token ids are trained on as they are: recipes/long_writer makes such pairs.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_longctx.console import parse_tokens
from hf_longctx.evaluation.records import Record, records
from hf_longctx.evaluation.tasks.long_output import FAULTS, NEVER_ENDS, dpo_row, long_tasks, problems, write_rows
from recipes.outs import new_file

SIDES = ("prompt", "chosen", "rejected")
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")  # the same as tokens: the columns that TRL makes
ENDED = tuple(fault for fault in FAULTS if fault != NEVER_ENDS)


def read_pairs(path: str | Path) -> list[dict[str, Any]]:
    """The pairs of a file of JSON lines, without its other keys.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There are none; a side is neither a text, a list of messages nor token ids, or not what those before
            it are; a better answer is empty, or the same as the worse one.
    """
    found: list[dict[str, Any]] = []
    if not Path(path).expanduser().exists():
        raise FileNotFoundError(f"pairs: no file {path}. python -m recipes.long_dpo.pairs --out {path} makes one.")
    for record in records(path):
        names, read = (IDS, _ids) if IDS[0] in record.data else (SIDES, _side)
        pair = {name: read(record, name) for name in names}
        kinds = {(names, type(value)) for value in pair.values()}
        kinds |= {(tuple(found[0]), type(value)) for value in found[0].values()} if found else set()
        if len(kinds) > 1:
            raise record.wrong(
                "some sides are texts, others messages or tokens. Expected one of them in the whole file."
            )
        _, chosen, rejected = names
        if pair[chosen] == pair[rejected]:
            raise record.wrong(f"{chosen!r} and {rejected!r} are the same, so nothing is preferred.")
        if names is SIDES and not _text(pair[chosen]).strip():
            raise record.wrong("'chosen' is empty; expected the better answer.")
        found.append(pair)
    if not found:
        raise ValueError(f"{path}: no pairs. Expected lines of {{'prompt': ..., 'chosen': ..., 'rejected': ...}}.")
    return found


def tokens_of(pair: dict[str, Any], tokenizer: Any) -> int:
    """Tokens of the prompt with its longer answer, as they are or as TRL makes them."""
    if IDS[0] in pair:
        prompt, *answers = (len(pair[name]) for name in IDS)
        return int(prompt + max(answers))
    if isinstance(pair["prompt"], str):
        texts = [pair["prompt"] + pair[side] for side in ("chosen", "rejected")]
        return max(len(tokenizer(text, verbose=False)["input_ids"]) for text in texts) + 1  # its end token
    chats = [pair["prompt"] + pair[side] for side in ("chosen", "rejected")]
    how: dict[str, Any] = {"return_dict": False, "tokenizer_kwargs": {"verbose": False}}
    return max(len(tokenizer.apply_chat_template(chat, **how)) for chat in chats)


def made(tasks: Sequence[str], tokens: int, number: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Pairs by rule, of answers of about `tokens` tokens."""
    rng = random.Random(f"faults/{seed}")
    for i, problem in enumerate(problems(tasks, tokens, number, seed=seed)):
        yield dpo_row(problem, fault=rng.choice(ENDED), seed=seed + i)


def _side(record: Record, side: str) -> Any:
    value = record[side]
    if isinstance(value, str):
        return value
    right = isinstance(value, list) and value
    for message in value if right else ():
        right = right and isinstance(message, dict)
        right = right and all(isinstance(message.get(key), str) for key in ("role", "content"))
    if not right:
        raise record.wrong(f"{side!r} is {value!r:.60}; expected a text, or messages with the texts role and content.")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _ids(record: Record, side: str) -> list[int]:
    value = record[side]
    if not isinstance(value, list) or not value or not all(type(one) is int and one >= 0 for one in value):
        raise record.wrong(f"{side!r} is {value!r:.60}; expected token ids, one at least.")
    return value


def _text(side: Any) -> str:
    return side if isinstance(side, str) else "".join(message["content"] for message in side)


def main(words: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=new_file, required=True, help="a .jsonl")
    parser.add_argument("--tokens", default="4k", help="of an answer: 60 to 32k")
    parser.add_argument("--number", type=int, default=200, help="of pairs")
    parser.add_argument("--tasks", default=",".join(long_tasks()), help="by name, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    try:
        rows = made(args.tasks.split(","), parse_tokens(args.tokens, "--tokens "), args.number, args.seed)
        print(f"Wrote {write_rows(args.out, rows)} pairs to {args.out}.")
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
