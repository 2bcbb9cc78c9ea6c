"""How long a layer attends to the static cache of answers: by the library's kernel, and by torch's.

    python -m recipes.long_writer.grouped_time

Heads and channels are those of SmolLM2-135M, bfloat16; each time is that of one call of several in a CUDA graph.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from hf_longctx.evaluation.rows import row
from recipes.benchmarks.reading import finish
from recipes.benchmarks.timing import milliseconds
from recipes.long_writer import grouped
from recipes.outs import RESULT_OPTION

HEADS, GROUPS, DIM, HIDDEN = 9, 3, 64, 200  # of a row the first columns are padding
SHAPES = [(1, 65536), (8, 65536), (20, 36864), (40, 8192), (64, 2304), (80, 16384), (83, 18176), (100, 4608)]
CALLS = 5


@torch.no_grad()
def microseconds(rows: int, columns: int) -> float:
    """Of a call for so many rows of so many columns."""
    how: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    query, key, value = (torch.randn(rows, *x, DIM, **how) for x in ((HEADS, 1), (GROUPS, columns), (GROUPS, columns)))
    bias = torch.zeros(rows, 1, 1, columns, **how)
    bias[..., :HIDDEN] = torch.finfo(torch.bfloat16).min
    positions = grouped.positions_of(bias)

    def calls() -> None:
        with grouped.one_token(positions):
            for _ in range(CALLS):
                grouped.attention(None, query, key, value, bias, scaling=DIM**-0.5)

    calls()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls()
    return 1e3 * milliseconds(graph.replay) / CALLS


def measured() -> Iterator[dict[str, Any]]:
    """A row for each shape."""
    for rows, columns in SHAPES:
        own = microseconds(rows, columns)
        with mock.patch.object(grouped, "has_kernel", return_value=False):
            torch_s = microseconds(rows, columns)
        what = f"a layer's attention of one token, {rows} rows of {columns:,} columns: torch's time over the kernel's"
        yield row(what, torch_s / own, "x", beside={"torch, µs": torch_s, "the kernel, µs": own})


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    parser.add_argument("--out", **RESULT_OPTION)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("it times kernels of a GPU, and there is none.")
    label = f"random tensors, {HEADS} heads, {GROUPS} of keys, of {DIM}, bfloat16"
    finish(SimpleNamespace(device="cuda"), measured(), args, "long_writer_attention", label=label, heading="measured")


if __name__ == "__main__":
    main()
