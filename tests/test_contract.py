"""The contract: every method x every tiny model x every property. Add a method: add a row.

Run one cell: pytest "tests/test_contract.py::test_contract[lm_infinite-qwen3-deepcopy-is-independent]"
The short form, which the oldest transformers we support must pass as well: pytest -m floor
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

import tests.contract.changes
import tests.contract.generation
import tests.contract.wrapping  # noqa: F401  (the three register their properties)
from hf_longctx import CodeLookup, InfLLM, LMInfinite, PositionFree, StreamingLLM
from tests.contract.registry import PROPERTIES, applies
from tests.contract.stack import Stack
from tests.rope.cases import methods as rope
from tests.rope.cases import works_here
from tests.tiny import FAMILIES, MORE_FAMILIES

INFINITE, STREAMING = LMInfinite(n_global=2, n_local=6), StreamingLLM(n_sink=2, window=6)
# what differs between families; the rest is shared code, and is run on three of them
CORE = (
    "changes-the-output-and-undo-is-bit-equal",
    "identity-settings-leave-the-output-equal",
    "forward-and-gradients-equal-brute-force",
    "save-and-load-give-equal-logits",
    "deepcopy-is-independent",
    "the-hook-alone-is-bit-equal-in-padded-generation",
    "a-left-padded-generation-equals-its-rows-alone",
    "cached-generation-equals-full-forward",
    "chunked-prefill-equals-one-prefill",
    "a-left-padded-second-turn-equals-rows-alone",
    "gradient-checkpointing-is-equal",
)
# of a table of frequencies alone; it is stock code that reads chunks, turns and checkpoints under it
FREQUENCIES = tuple(
    name for name in CORE if not name.startswith(("chunked-prefill", "a-left-padded-second", "gradient-checkpointing"))
)
# what an older transformers could break
FLOOR = (
    "changes-the-output-and-undo-is-bit-equal",
    "save-and-load-give-equal-logits",
    "cached-generation-equals-full-forward",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A method, the families on which it runs every property, and the properties that it runs on all others.

    A function makes the method for a family where models differ: longrope has a divisor a frequency.
    """

    method: Any
    families: tuple[str, ...] = FAMILIES
    elsewhere: tuple[str, ...] = CORE

    def properties(self, family: str) -> tuple[str, ...]:
        return tuple(PROPERTIES) if family in self.families else self.elsewhere


def scaled(name: str, *families: str, elsewhere: tuple[str, ...] = CORE) -> Row:
    return Row(lambda family: rope(family)[name], families, elsewhere)


ROWS = {
    "lm_infinite": Row(INFINITE),
    "lm_infinite_top3": Row(LMInfinite(n_global=2, n_local=6, top_k=3, top_k_from_layer=1)),
    # a shortlist that leaves some out, so that codes decide
    "code_lookup": Row(CodeLookup(n_global=2, n_local=6, top_k=3, shortlist=4), ("llama",)),
    "code_lookup_keys": Row(
        CodeLookup(n_global=2, n_local=6, top_k=3, by="keys", per="head", gate=None), (), CORE[2:3]
    ),
    "code_lookup_margin": Row(
        CodeLookup(n_global=2, n_local=6, top_k=3, shortlist=4, gate_margin=0.5), ("llama",), (CORE[2], *FLOOR)
    ),
    "code_lookup_strict": Row(
        CodeLookup(n_global=2, n_local=6, top_k=3, shortlist=4, gate_margin=-0.2), ("llama",), (CORE[2], *FLOOR)
    ),
    "code_lookup_count": Row(
        CodeLookup(n_global=2, n_local=6, top_k=3, shortlist=4, gate="count"), ("llama",), (CORE[2], *FLOOR)
    ),
    # one head of a group, both of another, and none of the other layer
    "code_lookup_heads": Row(
        CodeLookup(n_global=2, n_local=6, top_k=3, shortlist=4, gate="heads", heads=[[1, 0], [1, 2], [1, 3]]),
        ("llama",),
        (CORE[2], *FLOOR),
    ),
    # its cache is `lm_infinite_top3`'s; bounds are compared with loops in tests/attention/test_blocks.py
    "infllm": Row(InfLLM(n_global=2, n_local=6, top_k=2, block_size=4), ("llama",), (CORE[2], *FLOOR)),
    "streaming_llm": Row(STREAMING),
    "position_free": Row(PositionFree()),
    "rope_scaling_yarn": scaled("yarn", "llama", "gemma3"),  # Gemma3 has a scaling for each kind of layer
    "rope_scaling_longrope": scaled("longrope_static", "llama"),
    "rope_scaling_linear": scaled("linear", elsewhere=FREQUENCIES),
    "rope_scaling_ntk": scaled("ntk", elsewhere=FREQUENCIES),
    "rope_scaling_llama3": scaled("llama3", elsewhere=FREQUENCIES),
    "giraffe": scaled("giraffe", "llama"),
    "giraffe_power": scaled("giraffe_power", elsewhere=FREQUENCIES),
    "yarn_then_lm_infinite": Row(lambda family: Stack(rope(family)["yarn"], INFINITE), ("gemma3",)),
    "streaming_llm_then_llama3": Row(lambda family: Stack(STREAMING, rope(family)["llama3"]), ("llama",)),
}


def cells(name: str, row: Row, family: str) -> Iterator[Any]:
    method = row.method(family) if callable(row.method) else row.method
    refused = pytest.mark.skip(reason="this transformers is too old for a longrope for each kind of layer: refused")
    for wanted in row.properties(family):
        if applies(wanted, method, family):
            marks = [pytest.mark.floor] if wanted in FLOOR else []
            marks += [] if works_here(family, name) else [refused]
            yield pytest.param(method, family, wanted, id=f"{name}-{family}-{wanted}", marks=marks)


EVERY = (*FAMILIES, *MORE_FAMILIES)
CELLS = [cell for name, row in ROWS.items() for family in EVERY for cell in cells(name, row, family)]


@pytest.mark.parametrize(("method", "family", "name"), CELLS)
def test_contract(method: Any, family: str, name: str) -> None:
    PROPERTIES[name](method, family)
