"""The contract of DESIGN section 3: every method x every tiny model x every property. Add a method: add a row.

Run one cell: pytest "tests/test_contract.py::test_contract[lm_infinite-qwen3-deepcopy-is-independent]"
"""

from __future__ import annotations

from typing import Any

import pytest

import tests.contract.changes
import tests.contract.generation
import tests.contract.wrapping  # noqa: F401  (the three register their properties)
from hf_longctx import LMInfinite, PositionFree
from tests.contract.registry import PROPERTIES, applies
from tests.tiny import FAMILIES

METHODS: dict[str, Any] = {
    "lm_infinite": LMInfinite(n_global=2, n_local=6),
    "lm_infinite_top3": LMInfinite(n_global=2, n_local=6, top_k=3, top_k_from_layer=1),
    "position_free": PositionFree(),
}
CELLS = [
    pytest.param(method, family, name, id=f"{row}-{family}-{name}")
    for row, method in METHODS.items()
    for family in FAMILIES
    for name in PROPERTIES
    if applies(name, method, family)
]


@pytest.mark.parametrize(("method", "family", "name"), CELLS)
def test_contract(method: Any, family: str, name: str) -> None:
    PROPERTIES[name](method, family)
