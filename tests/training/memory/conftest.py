"""Chunks and tiles as small as the models; two ranks, started once."""

from __future__ import annotations

import pytest

from tests.parallel.conftest import two

from .rungs import small_chunks

__all__ = ["two"]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch.setattr)
