"""What composes with what: the one table, which `test_composition.py` checks and `docs/composition.md` shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_longctx import CodeLookup, InfLLM, LMInfinite, PositionFree, StreamingLLM
from tests.rope.cases import methods as rope

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/composition.md"
STATIC = ("linear", "ntk", "yarn", "llama3", "longrope_static", "giraffe")
MOVING = ("dynamic", "longrope")
ATTENTION: dict[str, Any] = {
    "lm_infinite": LMInfinite(n_global=2, n_local=6),
    "lm_infinite_top3": LMInfinite(n_global=2, n_local=6, top_k=3, top_k_from_layer=1),
    "code_lookup": CodeLookup(n_global=2, n_local=6, top_k=3),
    "infllm": InfLLM(n_global=2, n_local=6, top_k=2, block_size=4),
    "streaming_llm": StreamingLLM(n_sink=2, window=6),
    "position_free": PositionFree(),
}

# -- the members of a row or column: the name in the document -> its methods
SCALING, REPLACING, LENGTHWISE = "static scaling", "static, `replace=True`", "length-dependent scaling"
BY_HAND, LENGTHWISE_BY_HAND = "static scaling in its `config.json`", "length-dependent scaling in its `config.json`"
INFINITE, CODES, BLOCKS = "`lm_infinite`", "`code_lookup`", "`infllm`"
STREAMING, FREE = "`streaming_llm`", "`position_free`"
MEMBERS: dict[str, tuple[str, ...]] = {
    SCALING: STATIC,
    REPLACING: STATIC,
    LENGTHWISE: MOVING,
    BY_HAND: tuple(row for row in STATIC if row != "ntk"),  # ntk is a rope_theta like any other
    LENGTHWISE_BY_HAND: MOVING,
    INFINITE: ("lm_infinite", "lm_infinite_top3"),
    CODES: ("code_lookup",),
    BLOCKS: ("infllm",),
    STREAMING: ("streaming_llm",),
    FREE: ("position_free",),
}

# -- outcomes: the wording of the document -> that of the error
WORKS = "works"
STACKED = "refused: scalings do not stack"
SCALED = "refused: scaled already, needs `replace=True`"
MOVES = "refused: length-dependent frequencies"
POSITIONS = "refused: both control key positions"
ORDER = "refused (a `RuntimeError`): patches are undone last in, first out"
REASONS = {
    STACKED: r"rotary frequencies are already those of .*Undo it first",
    SCALED: r"scaled already .*scalings do not stack\. Pass replace=True",
    MOVES: r"changes its frequencies with the length read, so cached keys cannot be re-positioned",
    POSITIONS: r"is already applied to this model's attention. Undo it first",
    ORDER: r"is below .*last in, first out",
}

# -- the table: present first (rows), applied next (columns)
THEN = (SCALING, REPLACING, LENGTHWISE, INFINITE, CODES, BLOCKS, STREAMING, FREE)
_UNDER_A_METHOD = (WORKS, WORKS, MOVES, POSITIONS, POSITIONS, POSITIONS, POSITIONS, POSITIONS)
TABLE: dict[str, tuple[str, ...]] = {
    SCALING: (STACKED, STACKED, STACKED, WORKS, WORKS, WORKS, WORKS, WORKS),
    LENGTHWISE: (STACKED, STACKED, STACKED, MOVES, MOVES, MOVES, MOVES, MOVES),
    BY_HAND: (SCALED, WORKS, SCALED, WORKS, WORKS, WORKS, WORKS, WORKS),
    LENGTHWISE_BY_HAND: (SCALED, WORKS, SCALED, MOVES, MOVES, MOVES, MOVES, MOVES),
    INFINITE: _UNDER_A_METHOD,
    CODES: _UNDER_A_METHOD,
    BLOCKS: _UNDER_A_METHOD,
    STREAMING: _UNDER_A_METHOD,
    FREE: _UNDER_A_METHOD,
}
UNDO = {"the newer one first": WORKS, "the older one first": ORDER}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One pair of members: `first` is there, by hand or by `apply`; `then` is applied."""

    first: str
    by_hand: bool
    then: str
    replacing: bool
    outcome: str


def cells() -> Iterator[Cell]:
    for row, outcomes in TABLE.items():
        for column, outcome in zip(THEN, outcomes, strict=True):
            for first in MEMBERS[row]:
                for then in MEMBERS[column]:
                    by_hand = row in (BY_HAND, LENGTHWISE_BY_HAND)
                    yield Cell(first, by_hand, then, column == REPLACING, outcome)


def method(name: str, replacing: bool = False) -> Any:
    found = ATTENTION.get(name) or rope("llama")[name]
    return dataclasses.replace(found, replace=True) if replacing else found


def document() -> str:
    """`docs/composition.md`."""
    head = ["on the model", *THEN]
    rows = [head, ["---"] * len(head), *([row, *outcomes] for row, outcomes in TABLE.items())]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    undo = "\n".join(f"- {order}: {outcome}" for order, outcome in UNDO.items())
    return f"""# What composes with what

A row is what a model has already, a column what is applied to it next.

- *Static scaling*: `rope_scaling` of type linear, ntk, yarn, llama3, or longrope with equal tables; `giraffe`.
- *Length-dependent scaling*: `rope_scaling` of type dynamic, or longrope with two tables.
- *In its `config.json`*: a checkpoint that was scaled by hand, or by other software.
- *Works*: the logits equal a brute-force computation from the published formulas, the saved model loads with the
  same logits, and each undo is bit-exact.
- *Refused*: a `ValueError` with that reason and what to do; the model is unchanged.

{table}

`extend_config` accepts and refuses the same pairs. A scaling of type ntk is saved as a larger `rope_theta`, which
cannot be distinguished from a trained one: such a model, once saved, can be scaled again.

Undoing two patches:

{undo}

Rendered by `make tables` from `tests/composition/table.py`, every cell of which is a test.
"""
