"""The contract of DESIGN section 3: every method x every tiny model x every property. Add a method: add a row.

Run one cell: pytest "tests/test_contract.py::test_contract[lm_infinite-qwen3-deepcopy-is-independent]"
"""

from __future__ import annotations

from typing import Any

import contract.changes
import contract.generation
import contract.wrapping  # noqa: F401  (the three register their properties)
import pytest
from contract.registry import PROPERTIES, applies
from tiny import FAMILIES

from hf_longctx import LMInfinite, PositionFree

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
