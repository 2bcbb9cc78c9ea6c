"""The methods that are tried under every wrapper, and models that wrappers can take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_longctx import Giraffe, LMInfinite, RopeScaling, StreamingLLM
from tests.tiny import tiny

ATTENTION: dict[str, Any] = {
    "lm_infinite": LMInfinite(n_global=2, n_local=6),
    "lm_infinite_top3": LMInfinite(n_global=2, n_local=6, top_k=3, top_k_from_layer=1),
    "streaming_llm": StreamingLLM(n_sink=2, window=6),
}
ROPE: dict[str, Any] = {
    "rope_scaling": RopeScaling(factor=4.0, original_max_position_embeddings=16),
    "giraffe": Giraffe(train_length=64),
}
METHODS = {**ATTENTION, **ROPE}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def saved(folder: Path, method: Any = None, family: str = "llama", **changes: Any) -> Path:
    """A tiny checkpoint, with a method or without."""
    model = tiny(family, **changes)
    if method is not None:
        method.apply(model)
    model.save_pretrained(folder)
    return folder
