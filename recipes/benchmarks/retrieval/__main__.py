"""What a small model finds again in a text of many windows by `CodeLookup`, with a reader that can read, and as it is.

python -m recipes.benchmarks.documents DOCS                                  # fetches the texts
python -m recipes.benchmarks.retrieval --documents DOCS                      # every part at 64k; one GPU of 80 GB
python -m recipes.benchmarks.retrieval --documents DOCS --parts recall text --readers tuned --seeds 0 1
python -m recipes.benchmarks.retrieval --documents DOCS --length 1M --parts recall passkey text --readers tuned
python -m recipes.benchmarks.retrieval --documents DOCS --parts decoding reading beams        # costs, without a reader
python -m recipes.benchmarks.retrieval --tiny                # on the CPU, to see that it runs; keeps no result

It writes results/retrieval.json row by row; rows of an earlier run on the same hardware and versions stay, so
that parts may be measured in several calls; README.md beside this says how long each takes. The tuned reader is made
again in each (minutes), from texts that nothing is measured on, unless --keep names a folder for it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hf_longctx.hub import load
from hf_longctx.upstream.installing import Package, check_packages
from recipes.outs import new_folder

from ..haystacks import Haystacks
from ..reader import Lesson, teach_
from ..reading import lengths, rehearsal, results_of
from ..saving import Saved
from .costs import COSTS
from .facts import encoder
from .kept import KeptReaders
from .parts import PARTS, text_perplexity
from .run import LONG, TINY, Run, Sizes

READERS = ("stock", "tuned")
BRIEF = Lesson(steps=2, tokens=1024, lengths=(1024,))


def packages(words: Sequence[str]) -> Sequence[Package]:
    """Those that the command needs with these arguments."""
    return needed(arguments().parse_args(words).parts)


def needed(parts: Sequence[str]) -> Sequence[Package]:
    """Those of some parts: a part that needs any has them as its `packages`."""
    every = PARTS | COSTS
    return [package for part in parts for package in getattr(every[part], "packages", ())]


def arguments() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.benchmarks.retrieval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, *COSTS], default=list(PARTS))
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of tuned readers: one is made with each")
    parser.add_argument("--length", type=lengths, default=[LONG], help="of the long texts: 64k, 1M")
    parser.add_argument("--seconds", type=float, help="end long parts and begin none after so many; what is done stays")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="folder, Hub id or .gguf file")
    parser.add_argument("--documents", type=Path, help="folder of .txt files: see recipes.benchmarks.documents")
    parser.add_argument(
        "--keep", type=new_folder, help="a folder in which tuned readers stay for calls later and beside this one"
    )
    parser.add_argument("--older", type=Path, help="a source tree of before to compare with: see the part older")
    parser.add_argument("--tiny", action="store_true", help="a tiny model of random weights, on the CPU")
    parser.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    parser.add_argument("--out", type=new_folder, help="the folder of the result file; results/ here by default")
    return parser


def main(words: list[str] | None = None) -> None:
    """Measure the parts that are asked for with each reader, and write the result file."""
    parser = arguments()
    args = parser.parse_args(words)
    if len(args.length) != 1:
        parser.error(f"--length takes one length, not {len(args.length)}: call it once for each")
    device = "cuda" if torch.cuda.is_available() and not args.tiny else "cpu"
    if device == "cpu" and not args.tiny:
        parser.error("no GPU: one of 80 GB is needed. --tiny runs a tiny model on the CPU.")
    if not (args.tiny or args.documents):
        parser.error("texts are needed: fetch them (python -m recipes.benchmarks.documents DIR), then --documents DIR")
    if args.older is not None and not (args.older / "hf_longctx").is_dir():
        parser.error(f"--older {args.older}: there is no hf_longctx in it. Give the root of a checkout.")
    # a reader is tuned for minutes before the first part
    check_packages(needed(args.parts))
    out = results_of(args)
    label = "random weights, tiny, fp32" if args.tiny else "SmolLM2-135M-Instruct (Q4_1, dequantised), bfloat16"
    if not args.tiny and args.model != parser.get_default("model"):
        label = f"{Path(args.model).name}, bfloat16"
    Saved(out / "retrieval.json", label, device, args.commit).add(measured(args, device))


def measured(args: Any, device: str) -> Iterator[dict[str, Any]]:
    """The rows of every reader and part, in this order."""
    start, failed = time.monotonic(), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        if args.tiny:
            args.model, args.documents = rehearsal(Path(folder))
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        readers = ["stock"] if "stock" in args.readers else []
        readers += [f"tuned, seed {seed}" for seed in args.seeds if "tuned" in args.readers]
        sizes, lesson = (TINY, BRIEF) if args.tiny else (Sizes.at(args.length[0]), Lesson())
        costs = [part for part in args.parts if part in COSTS]
        own = [part for part in args.parts if part in PARTS]
        for name, parts in [("stock", costs), *((name, own) for name in readers)]:
            if not parts:
                continue
            model, tokenizer = load(args.model, dtype=dtype, device=device)
            run = made(model.eval(), tokenizer, args.documents, sizes, name, lesson, args.keep)
            run.until, run.older = None if args.seconds is None else start + args.seconds, args.older
            for part in parts:
                if run.time_is_over:
                    print(f"{part} of the {run.reader} is not measured: the time was over", flush=True)
                    continue
                try:
                    yield from {**PARTS, **COSTS}[part](run)
                except Exception:  # the other parts are worth having
                    traceback.print_exc()
                    failed.append(f"{part} of the {run.reader}")
                run.free()
    if failed:
        raise SystemExit(f"these parts failed: {', '.join(failed)}")


def made(
    model: Any,
    tokenizer: Any,
    documents: Path,
    sizes: Sizes,
    name: str,
    lesson: Lesson,
    folder: Path | None = None,
) -> Run:
    """A reader by its name: "stock", or "tuned, seed N", which is taught now unless a folder keeps it."""
    kind, _, seed = name.partition(", seed ")
    taught_with, measured_on = Haystacks(tokenizer, documents).halves()
    encode = encoder(tokenizer)
    reader = f"{kind} reader" + (f", seed {seed}" if seed else "")
    run = Run(model, encode, measured_on, sizes, reader, tokenizer=tokenizer, documents=documents)
    model.requires_grad_(kind == "tuned")
    if kind == "tuned":
        lesson = replace(lesson, seed=int(seed))
        kept = KeptReaders(folder, model, documents) if folder else None
        with kept.alone(lesson) if kept else nullcontext():
            noted = kept.load_(lesson) if kept else None
            if noted is None:
                untaught = text_perplexity(run)
                noted = {"untaught": untaught, "lesson": teach_(model, encode, taught_with, lesson)}
                if kept:
                    kept.save(lesson, noted)
        run.untaught, run.lesson = noted["untaught"], noted["lesson"]
    return run


if __name__ == "__main__":
    main()
