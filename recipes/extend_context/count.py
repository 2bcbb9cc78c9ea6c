"""How many facts a training asks for, by how far back they were told."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import yaml

from .settings import shares_of
from .windows import Windows

# of the longest window: 1k, 8k, 16k, 32k, 48k, 56k, 63k and 64k of 64k; and what positions span beyond it
EDGES = (1 / 64, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8, 63 / 64, 1, 9 / 8)


def distances(config: dict[str, Any], tokenizer: Any) -> Iterator[int]:
    """From every fact to its answer, in positions, as the training draws them."""
    # which text the facts are hidden in makes no difference
    text = torch.zeros(max(length for _, length in shares_of(config)) + 2, dtype=torch.int32)
    windows = Windows({"text": text}, tokenizer, config)
    for number, (kind, _) in enumerate(windows.kinds):
        if kind != "retrieval":
            continue
        for row in windows.rows(number):
            for fact, answer in row.asked:
                # a token's target is the next one: the answer is given by the token before it
                apart = answer - 1 - fact
                yield apart if row.positions is None else int(row.positions[answer - 1] - row.positions[fact])


def counted(config: dict[str, Any], tokenizer: Any, length: int) -> list[int]:
    """How many of them are below each of the edges and not below the one before."""
    found, edges = [0] * len(EDGES), [round(edge * length) for edge in EDGES]
    for distance in distances(config, tokenizer):
        found[min(bisect_right(edges, distance), len(found) - 1)] += 1
    return found


def table(configs: Mapping[str, dict[str, Any]], changes: Mapping[str, Any], tokenizer: Any) -> Iterator[str]:
    """A line of each: the facts that it asks for, and what it changes."""
    length = max(config["length"] for config in configs.values())
    edges = [f"< {round(edge * length):,}" for edge in EDGES]
    name = max(map(len, configs)) + 1
    tokens = next(iter(configs.values()))["tokens"]
    yield f"facts asked for in {tokens:,} tokens of training, by the tokens that lie between"
    yield f"{'variant':{name}}" + "".join(f"{edge:>10}" for edge in edges) + "       all  changes"
    for variant, config in configs.items():
        found = counted(config, tokenizer, length)
        told = yaml.safe_dump(changes[variant], default_flow_style=True, width=10**6, sort_keys=False).strip()
        yield f"{variant:{name}}" + "".join(f"{n:>10,}" for n in (*found, sum(found))) + f"  {told}"
