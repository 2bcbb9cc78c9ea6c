"""Chats in files of JSON lines: `{"messages": [{"role": "user", "content": "..."}, ...]}`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

EXPECTED = 'expected {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'


def read_chats(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, one by one. ValueError with the line's number for one that is no chat with an answer."""
    place = Path(path).expanduser()
    if not place.is_file():
        raise FileNotFoundError(f"{str(path)!r}: there is no such file. Give one with a chat a line: {EXPECTED}.")
    with place.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON ({error.msg}): {EXPECTED}.") from error
            checked_messages(row, f"{path}, line {number}")
            yield row


def checked_messages(row: Any, where: str) -> list[dict[str, Any]]:
    """The messages of a row; ValueError that says where it stands, if they are no chat with an answer in it."""
    messages = row.get("messages") if isinstance(row, Mapping) else None
    if not isinstance(messages, list) or not messages:
        found = sorted(row) if isinstance(row, Mapping) else type(row).__name__
        raise ValueError(f"{where} has no messages ({found}): {EXPECTED}.")
    for message in messages:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ValueError(f"{where} has a message without a role and a content that are text: {EXPECTED}.")
    if all(message["role"] != "assistant" for message in messages):
        raise ValueError(f"{where} has no message of the role 'assistant', so nothing to learn from: {EXPECTED}.")
    return messages
