"""What the commands share that ask a model for many texts: options, where replies are kept, several at a time."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from hf_longctx.console import Progress
from recipes.long_writer.kept_replies import KeptReplies

Item = TypeVar("Item")
Made = TypeVar("Made")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of requests."""
    parser.add_argument("--tries", type=int, default=3, help="requests until a reply can be used")
    parser.add_argument("--workers", type=int, default=8, help="texts at a time, with --endpoint")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for a reply of the endpoint")
    parser.add_argument("--retries", type=int, default=4, help="of a request that the endpoint did not answer")


def check_options(args: argparse.Namespace) -> None:
    """ValueError for numbers that are none of requests."""
    if min(args.tries, args.workers) < 1 or args.retries < 0 or args.timeout <= 0:
        raise ValueError("expected --tries and --workers of at least 1, --retries of at least 0, a --timeout above 0.")


def file_of_replies(out: Path) -> Path:
    """Where the replies of `--out` are kept."""
    return out.with_name(f"{out.name}.replies.jsonl")


def check_own(out: Path) -> None:
    """ValueError for a file that would be written over, and is not of such a command."""
    if out.exists() and not file_of_replies(out).exists():
        raise ValueError(f"--out {out} exists, and is not of this command. Choose another file.")


def in_order(make: Callable[[Item], Made], items: Sequence[Item], kept: KeptReplies, workers: int) -> list[Made]:
    """What `make` makes of each text, in their order, several at a time; after a failure nothing more is asked.

    Raises:
        Unreachable: The model no longer answers. What it has answered is kept.
    """
    found = []
    with ThreadPoolExecutor(workers) as threads, Progress("texts", len(items)) as progress:
        try:
            for one in threads.map(make, items):
                found.append(one)
                progress.advance(1)
        except BaseException as error:
            kept.failure = error  # no thread makes another request
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    return found
