"""A few whole answers of what was scored, to be read: figures do not tell what went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

SHOWN = 4  # answers of each kind and size
MOST = 20_000  # characters of one


def examples(
    kind: dict[str, Any], asked: Sequence[str], texts: Sequence[str], ended: Sequence[float], **values: Sequence[Any]
) -> list[dict[str, Any]]:
    """The first answers of a cell that ended by themselves and the first that did not, as many of both if there are.

    Args:
        kind: What the cell is of.
        asked: The prompts.
        texts: What was written.
        ended: Of each, whether it ended by itself.
        values: Scores that are told beside.
    """
    both = ([i for i, end in enumerate(ended) if bool(end) is is_ended] for is_ended in (True, False))
    chosen = sorted([i for pair in zip_longest(*both) for i in pair if i is not None][:SHOWN])
    return [
        kind
        | {"ended": bool(ended[i])}
        | {name: some[i] for name, some in values.items()}
        | {"prompt": asked[i][:MOST], "text": texts[i][:MOST]}
        for i in chosen
    ]
