"""The methods and the text of these tests."""

from __future__ import annotations

from typing import Any

import pytest

from hf_longctx import LMInfinite, PositionFree
from tests.tiny import text

IDS = text(2, 24)
METHOD = LMInfinite(n_global=2, n_local=6)


@pytest.fixture(params=["lm_infinite", "lm_infinite_top3", "position_free"])
def method(request: pytest.FixtureRequest) -> Any:
    top3 = LMInfinite(n_global=2, n_local=6, top_k=3, top_k_from_layer=1)
    return {"lm_infinite": METHOD, "lm_infinite_top3": top3, "position_free": PositionFree()}[request.param]
