"""Tokens of the Hugging Face Hub: recognised, so that they are neither sent nor shown."""

from __future__ import annotations

import re

TOKEN = re.compile(r"(?<![A-Za-z0-9_])hf_[A-Za-z0-9]{20,}")


def is_argument_with_token(argument: str) -> bool:
    """Whether an argument of a command is a token, or an option with one (`--token=hf_...`)."""
    return TOKEN.fullmatch(argument.partition("=")[2] if argument.startswith("-") else argument.strip()) is not None
