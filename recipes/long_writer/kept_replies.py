"""Requests whose replies are on disk before they are used, so that none is made twice."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_longctx.storage import CellStore

from .replies import Reply, Unreachable, encodable

MOST = 200_000  # characters of a reply that are kept; none that can be used is so long


class KeptReplies:
    """A model that finds in a file what it was asked before, by this run or by one that was interrupted.

    Args:
        model: Replies to (messages, max_tokens, seed).
        path: The file of replies.
        made_by: What replies depend on, such as the model's name and the temperature.

    Raises:
        ValueError: The file holds replies of another model or other settings, or something else.
    """

    def __init__(self, model: Callable[..., Reply], path: Path, made_by: dict[str, Any]) -> None:
        self.model, self.path = model, path
        self.cells = CellStore(path, made_by)
        self.failure: BaseException | None = None  # after which no request is made
        self._lock = threading.Lock()

    def __call__(self, messages: list[dict[str, str]], max_tokens: int, attempt: int) -> Reply:
        """The kept reply, or one that is kept now; after a failure in any thread, the failure."""
        digest = hashlib.sha256(json.dumps([messages, max_tokens, attempt]).encode()).hexdigest()
        with self._lock:
            kept = self.cells.get([digest])
        if kept is None:
            if self.failure is not None:
                raise self.failure
            try:
                reply = self.model(messages, max_tokens, int(digest[:7], 16))
            except Unreachable as error:
                self.failure = error
                raise
            kept = {"text": encodable(reply.text[:MOST]), "ended": reply.ended and len(reply.text) <= MOST}
            with self._lock:
                self.cells.put([digest], kept)
        return Reply(kept["text"], kept["ended"])
