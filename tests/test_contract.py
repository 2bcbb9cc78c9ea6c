"""The contract of DESIGN section 3: every method x every tiny model x every property. Add a method: add a row.

Run one cell: pytest "tests/test_contract.py::test_contract[lm_infinite-qwen3-deepcopy-is-independent]"
"""

from __future__ import annotations

from typing import Any

import pytest

import tests.contract.changes
import tests.contract.generation
import tests.contract.wrapping  # noqa: F401  (the three register their properties)
from hf_longctx import LMInfinite, PositionFree, StreamingLLM
from tests.contract.registry import PROPERTIES, applies
from tests.tiny import FAMILIES, MORE_FAMILIES

METHODS: dict[str, Any] = {
    "lm_infinite": LMInfinite(n_global=2, n_local=6),
    "lm_infinite_top3": LMInfinite(n_global=2, n_local=6, top_k=3, top_k_from_layer=1),
    "streaming_llm": StreamingLLM(n_sink=2, window=6),
    "position_free": PositionFree(),
}
# what differs between families; the rest is shared code, and is run on three of them
CORE = (
    "changes-the-output-and-undo-is-bit-equal",
    "identity-settings-leave-the-output-equal",
    "save-and-load-give-equal-logits",
    "deepcopy-is-independent",
    "the-hook-alone-is-bit-equal-in-padded-generation",
    "a-left-padded-generation-equals-its-rows-alone",
    "cached-generation-equals-full-forward",
    "chunked-prefill-equals-one-prefill",
    "a-left-padded-second-turn-equals-rows-alone",
    "gradient-checkpointing-is-equal",
)
CELLS = [
    pytest.param(method, family, name, id=f"{row}-{family}-{name}")
    for row, method in METHODS.items()
    for family in (*FAMILIES, *MORE_FAMILIES)
    for name in (PROPERTIES if family in FAMILIES else CORE)
    if applies(name, method, family)
]


@pytest.mark.parametrize(("method", "family", "name"), CELLS)
def test_contract(method: Any, family: str, name: str) -> None:
    PROPERTIES[name](method, family)
