"""`python -m tests.hub.matrix [word ...]`: a line for each load, and 1 where one is wrong."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
import transformers

from tests.hub.matrix import record
from tests.hub.matrix.judging import Judged
from tests.hub.matrix.rows import rows
from tests.hub.matrix.running import publish


def main() -> int:
    """Run the command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub.matrix", description=__doc__)
    parser.add_argument("word", nargs="*", help="only the rows that have all of these words in their names")
    parser.add_argument("--write", action="store_true", help="keep the results as this release's file")
    parser.add_argument("--processes", type=int, default=2, help="that run at a time")
    parser.add_argument("--together", type=int, default=8, help="loads of one process, where none changes another")
    args = parser.parse_args()
    wanted = [row for row in rows() if set(args.word) <= set(row.name.split())]
    if not wanted:
        parser.error(f"no row has {' and '.join(args.word)} in its name")
    if args.write and args.word:
        parser.error("--write keeps the results of all rows; give no words")
    torch.set_num_threads(1)  # as in the processes that load: sums in another order differ in the last bit
    transformers.logging.set_verbosity_error()
    began, done = time.monotonic(), []
    with tempfile.TemporaryDirectory() as root, publish(Path(root)) as published:
        for judged in published.judged(wanted, args.processes, args.together):
            print(line(judged), flush=True)
            done.append(judged)
    wrong = [judged for judged in done if judged.wrong]
    seconds = time.monotonic() - began
    print(f"transformers {transformers.__version__}: {len(done)} loads, {len(wrong)} wrong, {seconds:.0f} s")
    if args.write:
        print(f"written to {record.write(done, seconds)}")
    return bool(wrong)


def line(judged: Judged) -> str:
    """A row of the table."""
    verdict = f"WRONG: {'; '.join(judged.wrong)}" if judged.wrong else judged.found
    off = f" ({judged.distance:.0e} apart)" if judged.distance and not judged.wrong else ""
    return f"{judged.row.name:60} {judged.seconds:5.1f} s  {verdict}{off}"


if __name__ == "__main__":
    raise SystemExit(main())
