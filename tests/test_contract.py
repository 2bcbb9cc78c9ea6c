"""The contract of DESIGN section 3: every method x every tiny model x every property. Add a method: add a row.

Run one cell: pytest "tests/test_contract.py::test_contract[lm_infinite-qwen3-deepcopy-is-independent]"
The short form, which the oldest transformers we support must pass as well: pytest -m floor
"""

from __future__ import annotations

from typing import Any

import pytest

import tests.contract.changes
import tests.contract.generation
import tests.contract.wrapping  # noqa: F401  (the three register their properties)
from hf_longctx import LMInfinite, PositionFree, StreamingLLM
from tests.contract.registry import PROPERTIES, applies
from tests.contract.stack import Stack
from tests.rope.cases import methods as rope
from tests.rope.cases import works_here
from tests.tiny import FAMILIES, MORE_FAMILIES

INFINITE, STREAMING = LMInfinite(n_global=2, n_local=6), StreamingLLM(n_sink=2, window=6)
# a row is a method, or a function from family to method where models differ (longrope has a divisor a frequency)
METHODS: dict[str, Any] = {
    "lm_infinite": INFINITE,
    "lm_infinite_top3": LMInfinite(n_global=2, n_local=6, top_k=3, top_k_from_layer=1),
    "streaming_llm": STREAMING,
    "position_free": PositionFree(),
    "rope_scaling_yarn": lambda family: rope(family)["yarn"],
    "rope_scaling_longrope": lambda family: rope(family)["longrope_static"],
    "rope_scaling_linear": lambda family: rope(family)["linear"],
    "rope_scaling_ntk": lambda family: rope(family)["ntk"],
    "rope_scaling_llama3": lambda family: rope(family)["llama3"],
    "giraffe": lambda family: rope(family)["giraffe"],
    "giraffe_power": lambda family: rope(family)["giraffe_power"],
    "yarn_then_lm_infinite": lambda family: Stack(rope(family)["yarn"], INFINITE),
    "streaming_llm_then_llama3": lambda family: Stack(STREAMING, rope(family)["llama3"]),
}
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
# under these rows it is stock code that reads chunks, turns and checkpoints: their families share the frequencies only
STOCK = (
    "chunked-prefill-equals-one-prefill",
    "a-left-padded-second-turn-equals-rows-alone",
    "gradient-checkpointing-is-equal",
)
CORE_OF_TABLES = tuple(name for name in CORE if name not in STOCK)
TABLES = ("rope_scaling_linear", "rope_scaling_ntk", "rope_scaling_llama3", "giraffe_power")
# the families on which a row runs every property, where not on FAMILIES; Gemma3 has a scaling for each kind of layer
WHOLE: dict[str, tuple[str, ...]] = {
    "rope_scaling_yarn": ("llama", "gemma3"),
    "rope_scaling_longrope": ("llama",),
    "giraffe": ("llama",),
    "yarn_then_lm_infinite": ("gemma3",),
    "streaming_llm_then_llama3": ("llama",),
    **dict.fromkeys(TABLES, ()),
}
# what an older transformers could break
FLOOR = (
    "changes-the-output-and-undo-is-bit-equal",
    "save-and-load-give-equal-logits",
    "cached-generation-equals-full-forward",
)


def names_for(row: str, family: str) -> tuple[str, ...]:
    if family in WHOLE.get(row, FAMILIES):
        return tuple(PROPERTIES)
    return CORE_OF_TABLES if row in TABLES else CORE


def cell(row: str, family: str, name: str) -> Any:
    method = METHODS[row](family) if callable(METHODS[row]) else METHODS[row]
    marks: list[Any] = [pytest.mark.floor] if name in FLOOR else []
    if not works_here(family, row):
        marks.append(
            pytest.mark.skip(reason="refused: this transformers is too old for a longrope for each kind of layer")
        )
    return pytest.param(method, family, name, id=f"{row}-{family}-{name}", marks=marks)


CELLS = [
    one
    for row in METHODS
    for family in (*FAMILIES, *MORE_FAMILIES)
    for name in names_for(row, family)
    if applies(name, (one := cell(row, family, name)).values[0], family)
]


@pytest.mark.parametrize(("method", "family", "name"), CELLS)
def test_contract(method: Any, family: str, name: str) -> None:
    PROPERTIES[name](method, family)
