"""What sequence parallelism on 64 cards exchanges, and how efficient that should be, on paper.

    python -m recipes.accelerate.volumes          # the table of README.md
    python -m recipes.accelerate.volumes --write  # puts it there

`tests/parallel/test_launching.py` holds `sent` against the bytes that ranks hand to torch.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).with_name("README.md")
BLOCK = re.compile(r"(<!-- volumes -->\n).*?(<!-- /volumes -->)", re.DOTALL)

CARDS, HOST = 64, 8  # cards in all, and of a host
TOKENS = 2**20  # of one document
SETTINGS = ((8, 1), (16, HOST), (64, HOST), (64, 1))  # degree, and how many of it exchange heads
# bytes a second in each direction: NVLink as measured on two H100s; between hosts, a network of 200 Gb/s for each card
INSIDE, BETWEEN = 250e9, 25e9
# FLOP a second in bfloat16, as measured on an H100
MATMUL, FORWARD, BACKWARD = 650e12, 465e12, 372e12


@dataclass(frozen=True)
class Model:
    """Sizes of a decoder: its name, hidden size, query heads, key/value heads, head dim, width of the MLP."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    dim: int
    width: int


MODELS = (Model("1.24B", 2048, 32, 8, 64, 8192), Model("8B", 4096, 32, 8, 128, 14336))


@dataclass(frozen=True)
class Sent:
    """Bytes that a rank sends in one layer: keys from rank to rank, heads inside a host; forward and backward."""

    keys: tuple[float, float] = (0.0, 0.0)
    heads: tuple[float, float] = (0.0, 0.0)


def sent(model: Model, tokens: int, ranks: int, inside: int = 1, number: int = 2, kept: bool = False) -> Sent:
    """Of one document, all of which is cut. With `inside` > 1, heads are exchanged among so many ranks (hybrid).

    A ring sends the keys of all others, and in backward their gradients in fp32 too. Log-sum-exps of heads are sent in
    forward only, which keeps them.

    Args:
        model: Its heads.
        tokens: Of the document.
        ranks: That share it.
        inside: How many of them exchange heads; they must divide the query heads.
        number: Bytes of a number of the model.
        kept: The keys that came in the forward are kept for backward, as all-gather does; only gradients travel.
    """
    rows, outside = tokens / ranks, ranks // inside
    read = max(model.kv_heads, inside)  # a key/value head that several ranks need is sent to each
    exact = number if read == model.kv_heads else 4  # gradients that are summed
    kv = (
        2 * model.dim * read / inside * rows * inside
    )  # numbers: keys and values of the rank's heads and its host's rows
    keys = (outside - 1) * kv * number, (outside - 1) * kv * (4 if kept else number + 4)
    q, kv_rows, lse = (rows * n for n in (model.heads * model.dim, 2 * read * model.dim, model.heads))
    others = (inside - 1) / inside
    forward = others * ((2 * q + kv_rows) * number + lse * 4)
    backward = others * ((4 * q + kv_rows) * number + kv_rows * exact)
    return Sent(keys, (forward, backward))


def seconds(model: Model, tokens: int, ranks: int) -> tuple[float, float]:
    """Of one layer on one rank, without exchanges: attention, and all else. The forward pass runs twice."""
    across = model.heads * model.dim
    weights = 2 * model.hidden * across + 2 * model.hidden * model.kv_heads * model.dim + 3 * model.hidden * model.width
    dense = 8 * weights * tokens / ranks / MATMUL
    causal = 2 * tokens**2 * across / ranks
    return 2 * causal / FORWARD + 2.5 * causal / BACKWARD, dense


def efficiency(model: Model, tokens: int, ranks: int, inside: int = 1) -> float:
    """The part of a layer's time that is computing. Keys travel while attention is computed, heads do not."""
    attention, dense = seconds(model, tokens, ranks)
    bytes_ = sent(model, tokens, ranks, inside)
    travelling = (2 * bytes_.keys[0] + bytes_.keys[1]) / (BETWEEN if ranks > HOST else INSIDE)
    waiting = (2 * bytes_.heads[0] + bytes_.heads[1]) / INSIDE
    return (attention + dense) / (max(attention, travelling) + dense + waiting)


def lines() -> Iterator[list[str]]:
    """The table, head first."""
    yield ["model", "tokens", "degree", "groups", "kind", "keys, MB", "heads, MB", "compute, ms", "efficiency"]
    for model in MODELS:
        for tokens, (degree, inside) in itertools.product((TOKENS // 8, TOKENS), SETTINGS):
            kind = f"hybrid, {inside} inside" if inside > 1 else "ring"
            both = sent(model, tokens, degree, inside)
            keys, heads = (f"{2 * a / 1e6 + b / 1e6:,.0f}" if b else "-" for a, b in (both.keys, both.heads))
            yield [
                *(model.name, f"{tokens // 1024}k", str(degree), str(CARDS // degree), kind, keys, heads),
                f"{1e3 * sum(seconds(model, tokens, degree)):,.1f}",
                f"{efficiency(model, tokens, degree, inside):.1%}",
            ]


def table() -> str:
    """In Markdown."""
    head, *rest = lines()
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *rest)) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    if parser.parse_args(arguments).write:
        text = README.read_text(encoding="utf-8")
        README.write_text(BLOCK.sub(lambda match: f"{match[1]}\n{table()}\n{match[2]}", text), encoding="utf-8")
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
