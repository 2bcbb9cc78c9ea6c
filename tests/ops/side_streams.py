"""Streams that write down who waits for whom, in the place of CUDA's: for tests on any machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from hf_longctx.ops.kernels import side_stream

FORK, JOIN = "side waits for main", "main waits for side"


class Streams:
    """Everything on a main stream and a side one, in the order of the host; `notes` says on which."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.notes: list[str] = []
        self._now = "main"
        self._patch = patch
        patch.setattr(side_stream, "recording", lambda x: True)
        patch.setattr(side_stream, "_side", lambda device: _Stream("side", self.notes))
        patch.setattr(torch.cuda, "current_stream", lambda device: _Stream("main", self.notes))
        patch.setattr(torch.cuda, "stream", self._on)

    @contextlib.contextmanager
    def _on(self, stream: _Stream) -> Iterator[None]:
        before, self._now = self._now, stream.name
        yield
        self._now = before

    def note(self, what: str) -> None:
        """What happens now."""
        self.notes.append(f"{what} on {self._now}")

    def watch(self, owner: Any, name: str, what: str) -> None:
        """Note every call of a function."""
        call: Callable[..., Any] = getattr(owner, name)

        def noted(*given: Any, **settings: Any) -> Any:
            self.note(what)
            return call(*given, **settings)

        self._patch.setattr(owner, name, noted)


class _Stream:
    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self._notes = name, notes

    def wait_stream(self, other: _Stream) -> None:
        self._notes.append(f"{self.name} waits for {other.name}")
