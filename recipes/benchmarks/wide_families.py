"""Random models with sinks, a soft-cap or latent keys under LMInfinite: memory, prefill, cached steps, time per token.

python -m recipes.benchmarks.wide_families              # gpt-oss-20b, Gemma 2 9B, DeepSeek-V2-Lite on one GPU of 80 GB
python -m recipes.benchmarks.wide_families --only gemma2 --parts writing
python -m recipes.benchmarks.wide_families --tiny       # two layers each, on the CPU; writes no result file by default

Each model runs in a process of its own; a part of it that fails is a row that says why.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import torch

from hf_longctx.evaluation.rows import row
from recipes.cards import free
from recipes.outs import new_folder

from . import wide_attention, wide_cached, wide_writing
from .hydragen import Attempt
from .reading import finish, results_of
from .wide_models import FULL, GEOMETRIES, TINY, Geometry, Sizes, build

BY_DEFAULT = ("gpt_oss", "gemma2", "deepseek_v2")
ROW = "ROW "
PARTS = {"attention": "attention", "writing": "reading and writing", "cached": "cached steps"}


def measure(geometry: Geometry, sizes: Sizes, device: str, parts: list[str]) -> Iterator[dict[str, Any]]:
    """All rows of one model, with the part that each is of."""
    model: Any = None
    for part in parts:
        if part == "attention":
            rows = wide_attention.rows(geometry, sizes, device, Attempt(seconds=120))
        else:
            model = model or build(geometry, sizes, device, torch.bfloat16 if device == "cuda" else torch.float32)
            rows = (wide_writing if part == "writing" else wide_cached).rows(model, geometry, sizes, device)
        yield from ({"part": part, **found} for found in _part(f"{geometry.name}: {PARTS[part]}", rows, device))


def _part(name: str, rows: Iterator[dict[str, Any]], device: str) -> Iterator[dict[str, Any]]:
    start = time.perf_counter()
    try:
        yield from rows
    except Exception as error:  # the other parts are worth having
        traceback.print_exc()
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
        yield row(f"{name} runs to its end", 0, "", bar="== 1", why=why)
    print(f"{name} took {time.perf_counter() - start:.0f} s", flush=True)
    del rows
    free()


def _in_a_process(name: str, parts: list[str], tiny: bool) -> Iterator[dict[str, Any]]:
    """The rows of one model, as it prints them."""
    command = [sys.executable, "-m", "recipes.benchmarks.wide_families", "--child", name, "--parts", *parts]
    command += ["--tiny"] * tiny
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith(ROW):
                yield json.loads(line.removeprefix(ROW))
            else:
                print(line, end="", flush=True)
    print(f"{name} took {time.perf_counter() - start:.0f} s", flush=True)
    if child.returncode:
        why = f"its process ended with {child.returncode}"
        yield {"part": "end"} | row(f"{GEOMETRIES[name].name}: all parts run to their end", 0, "", bar="== 1", why=why)


def main() -> None:
    """Run every model, write the result file, and print a table last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GEOMETRIES, default=BY_DEFAULT)
    parser.add_argument("--tiny", action="store_true", help="two layers and a few tokens, to see that it runs")
    parser.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    parser.add_argument("--out", type=new_folder, help="the folder of the result files; results/ here by default")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what of each model to measure")
    parser.add_argument("--child", choices=GEOMETRIES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() and not args.tiny else "cpu"
    if args.child:
        for found in measure(GEOMETRIES[args.child], TINY if args.tiny else FULL, device, args.parts):
            print(ROW + json.dumps(found), flush=True)
        return
    args.out = results_of(args)  # one folder for all parts
    every: list[dict[str, Any]] = []

    def kept(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for one in rows:
            every.append({key: value for key, value in one.items() if key != "part"})
            yield every[-1]

    for name in args.only:
        shape = f"random weights in the geometry of {GEOMETRIES[name].name}{', tiny' * args.tiny}"
        label = f"{shape}, {'bf16' if device == 'cuda' else 'fp32'}"
        for part, rows in groupby(_in_a_process(name, args.parts, args.tiny), key=itemgetter("part")):
            where = SimpleNamespace(device=torch.device(device))
            finish(where, kept(rows), args, f"wide_{name}_{part}", label=label)
    print()
    for one in every:
        value = "-" if one["value"] is None else f"{one['value']:.4g}"
        mark = {True: "holds", False: "MISSES", None: ""}[one["holds"]]
        print(f"{value:>10} {one['unit']:6} {one['bar'] or '':10} {mark:6} {one['what']}")
        if one["why"]:
            print(f"{'':35} {one['why']}")


if __name__ == "__main__":
    main()
