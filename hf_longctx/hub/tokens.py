"""The token to publish with: from a file, or as huggingface_hub finds it; checked, and never shown."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from .answers import SIGN_IN, UploadError

logger = logging.getLogger("hf_longctx")


def token_from(path: str | os.PathLike[str]) -> str:
    """The token in a file of one line, for `upload`. A file that others may read is used, with a warning.

    Raises:
        ValueError: The file is empty or holds more than a token. The message does not show what it holds.
        OSError: It cannot be read.
    """
    file = Path(path).expanduser()
    lines = file.read_bytes().split(b"\n")
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) != 1:
        raise ValueError(f"{str(path)!r} has {len(lines)} lines that are not empty, expected one: the token alone.")
    if os.name == "posix" and file.stat().st_mode & 0o077:
        logger.warning("%s: other users of this computer can read the token. Run: chmod 600 %s", path, path)
    return _sendable(lines[0].decode("ascii", "replace"), f"{str(path)!r}")


def _sendable(token: str, source: str) -> str:
    """The token, unless it cannot be part of a request; an HTTP client's own error would show it."""
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError(f"{source} holds spaces or other characters that no token has. Copy the token again.")
    return token


def token_for(given: str | None) -> str:
    """The token that is given, else the one that huggingface_hub finds.

    Raises:
        UploadError: There is none.
        ValueError: It cannot be one.
    """
    from huggingface_hub import get_token

    token = given if given is not None else get_token()
    if token is None:
        raise UploadError(f"no token was given and none is stored, and publishing needs one. {SIGN_IN}.")
    return _sendable(token, "the token")
