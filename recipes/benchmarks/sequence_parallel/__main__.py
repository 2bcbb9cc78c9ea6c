"""Sequence parallelism on two GPUs: steps, packs, kinds of exchange, memory kept, host time, and losses of training.

python -m recipes.benchmarks.sequence_parallel                       # every part; 2 GPUs of 80 GB
python -m recipes.benchmarks.sequence_parallel --parts train --tokens 8k,32k --seconds 540
python -m recipes.benchmarks.sequence_parallel --tiny                # on the CPU, to see that it runs; keeps no result

It starts the processes of each part by itself, on one card and on two in turn. A part writes
results/sequence_parallel_PART.json row by row; rows of an earlier run on the same hardware and versions stay.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from recipes.outs import new_folder

from ..geometries import SIZES
from ..reading import lengths, results_of
from ..saving import Saved
from . import host, kept, packed, steps, train, ulysses
from .launching import Launcher
from .texts import RANDOM

PARTS = {"train": train, "kept": kept, "host": host, "packed": packed, "ulysses": ulysses, "steps": steps}


def main(words: list[str] | None = None) -> None:
    """Measure the parts that are asked for, and write their result files."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.benchmarks.sequence_parallel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--geometry", nargs="+", choices=SIZES, default=list(SIZES), help="of part train")
    parser.add_argument("--tokens", type=lengths, help="lengths of parts train, kept and ulysses: 8k,32k")
    parser.add_argument(
        "--lines", nargs="+", choices=(*train.ALL, *train.FUSED), help="lines of part train; all by default"
    )
    parser.add_argument("--seconds", type=float, help="end what runs after so many, and keep what was measured")
    parser.add_argument(
        "--model", default="smollm2-135m-instruct", help="of part steps: folder, Hub id, .gguf file, or random"
    )
    parser.add_argument("--documents", type=Path, help="of part steps: see recipes.benchmarks.documents")
    parser.add_argument("--tiny", action="store_true", help="tiny models and texts on the CPU")
    parser.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    parser.add_argument("--out", type=new_folder, help="the folder of the result files; results/ here by default")
    args = parser.parse_args(words)
    device = "cuda" if torch.cuda.is_available() and not args.tiny else "cpu"
    if device == "cpu" and not args.tiny:
        parser.error("no GPU: two are needed. --tiny runs tiny models on the CPU.")
    out = results_of(args)
    if "steps" in args.parts and not (args.tiny or args.documents):
        parser.error(
            "part steps trains on texts: fetch them (python -m recipes.benchmarks.documents DIR), --documents DIR"
        )
    label = f"random weights{', tiny' * args.tiny}, {'bfloat16' if device == 'cuda' else 'fp32'}"
    launcher = Launcher(args.tiny, args.seconds)
    for part in args.parts:
        for geometry in args.geometry if part == "train" else list(SIZES)[:1]:
            if part == "steps":
                found = steps.rows(launcher, RANDOM if args.tiny else args.model, args.documents)
            else:
                found = PARTS[part].rows(launcher, geometry, args.tokens or [], args.lines or [])
            file = out / f"sequence_parallel_{part}.json"
            Saved(file, label, device, args.commit, cards=2).add(found)


if __name__ == "__main__":
    main()
