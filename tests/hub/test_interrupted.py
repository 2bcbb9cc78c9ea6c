"""Ctrl-C while a commit is being sent: one line says where to look."""

from __future__ import annotations

from typing import Any

import pytest

from hf_longctx.hub.commit import Commit


class Interrupted:
    """A client of the Hub whose user presses Ctrl-C."""

    def create_commit(self, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_commit_says_where_to_look() -> None:
    api: Any = Interrupted()
    with pytest.raises(KeyboardInterrupt, match=r"sending to you/model: look there .* --update"):
        Commit(api, "you/model", "main", "0" * 40, {}, [], "token").publish("A message")
