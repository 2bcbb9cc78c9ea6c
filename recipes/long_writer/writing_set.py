"""A set of writing tasks made by rule: `python -m recipes.long_writer.writing_set --documents DIR --out FILE`.

A prompt gives the beginning of a passage and asks for a length; the answer is how the passage really continues, cut at
the sentence nearest to that length. `FILE` is for training. Beside it, `NAME.held_back.jsonl` asks every beginning of
held-back documents for each of a few lengths, plain and in counted parts.
"""

from __future__ import annotations

import argparse
import statistics
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from hf_longctx.evaluation.benchmarks.longwriter import length_score
from hf_longctx.evaluation.writing import repeated_ngrams
from hf_longctx.storage.files import write_json_lines
from recipes.long_writer.sentences import document_of
from recipes.long_writer.writing_rows import LEAST, MOST, Row, held_back_rows, training_rows
from recipes.outs import new_file
from recipes.texts import read_folders, set_apart, shares_in_training

HELD_BACK = "moby_dick,anarchist_faq,cpp_annotations,jargon"  # as recipes/extend_context holds back
OVERLAP = 0.05  # of a held-back document's words may lie in runs of 13 that are trained on
EDGES = (1, 200, 400, 800, 1600, 3200, 8001)  # of the table, in asked words


def make(
    folders: Sequence[str | Path],
    held_back: Sequence[str],
    *,
    samples: int,
    beginnings: int,
    lengths: Sequence[int],
    least: int = LEAST,
    most: int = MOST,
    seed: int = 0,
) -> tuple[list[Row], list[Row]]:
    """The rows for training and those of held-back documents. Arguments and errors as those of the command."""
    if min(samples, beginnings, least, min(lengths, default=0)) < 1 or least >= most:
        raise ValueError(
            f"samples={samples}, beginnings={beginnings}, lengths={list(lengths)}, least={least}, most={most}: "
            "expected whole numbers, at least 1, and the least below the most."
        )
    apart = set_apart(read_folders(folders), held_back)
    held, training = ({name: document_of(text) for name, text in some.items()} for some in (apart.held, apart.training))
    if not held or not training:
        raise ValueError(
            f"held_back: {', '.join(held_back) or 'nothing'}: expected some of the documents, and others that are "
            f"trained on. There are: {', '.join({**apart.held, **apart.training})}."
        )
    marks = [{name: _word_marks(text) for name, text in some.items()} for some in (apart.held, apart.training)]
    shares_in_training(*marks, most=OVERLAP)
    asked = held_back_rows(held, beginnings, lengths, seed=seed)
    return training_rows(training, samples, seed=seed, least=least, most=most), asked


def _word_marks(text: str) -> list[int]:
    return [zlib.crc32(word.encode()) for word in text.lower().split()]


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of a table: rows, S_l and repeated 8-grams of the texts themselves, by asked words."""
    yield f"{'asked words':>14}{'rows':>8}{'counted':>9}{'S_l':>7}{'repeated 8-grams':>18}"
    for low, high in pairwise(EDGES):
        some = [row for row in rows if low <= row["words"] < high]
        if not some:
            continue
        texts = [row["messages"][1]["content"] for row in some]
        scores = [100 * length_score(text, row["words"]) for row, text in zip(some, texts, strict=True)]
        repeated = statistics.fmean(map(repeated_ngrams, texts))
        form, between = sum(row["form"] == "counted" for row in some), f"{low:,} to {high - 1:,}"
        yield f"{between:>14}{len(some):>8}{form:>9}{statistics.fmean(scores):>7.1f}{repeated:>18.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make both files and say what is in them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folders = "folders of .txt files (recipes.benchmarks.documents); one or several"
    parser.add_argument("--documents", required=True, nargs="+", metavar="DIR", help=folders)
    parser.add_argument("--out", type=new_file, required=True, help="the JSONL file for training")
    parser.add_argument("--held-back", default=HELD_BACK, help="documents held back whole, separated by commas")
    parser.add_argument("--samples", type=int, default=12_000, help="rows for training")
    parser.add_argument("--beginnings", type=int, default=50, help="held-back beginnings")
    parser.add_argument("--least", type=int, default=LEAST, help="words that are asked for in training, at least")
    parser.add_argument("--most", type=int, default=MOST, help="words that are asked for in training, at most")
    words = {"type": int, "nargs": "+", "default": [500, 1000, 2000, 4000], "metavar": "WORDS"}
    parser.add_argument("--lengths", help="that held-back beginnings are asked for", **words)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    names = [name.strip() for name in given.held_back.split(",") if name.strip()]
    counts = {key: getattr(given, key) for key in ("samples", "beginnings", "lengths", "least", "most", "seed")}
    try:
        training, held = make(given.documents, names, **counts)
        for rows, path in ((training, given.out), (held, given.out.with_suffix(".held_back.jsonl"))):
            write_json_lines(path, rows)
            print(f"{path}: {len(rows):,} tasks", *summary(rows), sep="\n")
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
    if len(training) < given.samples:
        print(f"The documents hold {len(training):,} tasks, fewer than --samples {given.samples:,}.")


if __name__ == "__main__":
    main()
