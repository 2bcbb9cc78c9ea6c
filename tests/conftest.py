"""Fixtures for every test: one seed, globals compared before and after, and marks that need hardware."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import hf_longctx  # noqa: F401  (its registrations are part of every "before")
from tests.rope.cases import works_here

# tiny matrices: threads only wait for each other
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpus = torch.cuda.device_count()
    needed = {"gpu": (1, "an NVIDIA GPU"), "dist": (2, "two or more GPUs")}
    for item in items:
        for mark, (count, words) in needed.items():
            if item.get_closest_marker(mark) and gpus < count:
                item.add_marker(pytest.mark.skip(reason=f"needs {words}; torch sees {gpus}"))
        values = getattr(item, "callspec", None) and item.callspec.params
        if values and {"family", "row"} <= set(values) and not works_here(values["family"], values["row"]):
            item.add_marker(pytest.mark.skip(reason="transformers is too old for it, and it is refused"))


@pytest.fixture(autouse=True)
def seed() -> int:
    """The one seed of all tests."""
    random.seed(0)
    torch.manual_seed(0)
    return 0


def touched_globals() -> dict[str, Any]:
    """The globals that our hooks and tests can touch."""
    return {
        "attention functions": tuple(sorted(ALL_ATTENTION_FUNCTIONS.keys())),
        "PreTrainedModel.post_init": PreTrainedModel.post_init,
        "GenerationMixin._prepare_cache_for_generation": GenerationMixin._prepare_cache_for_generation,
        "PreTrainedConfig.hf_longctx": vars(PreTrainedConfig).get("hf_longctx"),
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad": torch.is_grad_enabled(),
    }


@pytest.fixture(autouse=True)
def globals_are_left_alone() -> Iterator[None]:
    before = touched_globals()
    yield
    assert touched_globals() == before, "the test left a global changed"
