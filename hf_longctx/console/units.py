"""Lengths and sizes as people write them: parsed and shown."""

from __future__ import annotations

import re

# k is binary, as in "a 128k context"; M is decimal, as in "a million tokens". The number itself is always printed.
TOKENS = {"": 1, "k": 1024, "m": 1_000_000}
BYTES = {f"{p}ib": 2 ** (10 * n) for n, p in enumerate("kmgt", 1)} | {"b": 1}
BYTES |= {f"{p}{b}": 10 ** (3 * n) for n, p in enumerate("kmgt", 1) for b in ("b", "")}
GIB = 2**30


def parse_tokens(text: int | str, name: str = "length") -> int:
    """`"128k"` is 131,072, `"1M"` is 1,000,000, `"200_000"` and `"200,000"` are themselves. At least 1."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmKM]?)", str(text).strip().replace("_", "").replace(",", ""))
    tokens = float(found[1]) * TOKENS[found[2].lower()] if found else 0.0
    if not found or tokens < 1 or tokens != int(tokens):
        raise ValueError(
            f"{name}={text!r}: expected a whole number of tokens, at least 1: 200000, 128k (131,072) or 1M (1,000,000)."
        )
    return int(tokens)


def parse_lengths(text: str, name: str = "lengths") -> list[int]:
    """`"4096,8k,1M"` as a list, each part as in `parse_tokens`. The caller decides whether 0 is a length."""
    found = []
    for part in text.split(","):
        whole = re.fullmatch(r"\s*([+-]?\d+)\s*", part)
        try:
            found.append(int(whole[1]) if whole else parse_tokens(part))
        except ValueError:
            raise ValueError(
                f"{name} {text}: expected whole numbers of tokens separated by commas, such as 4096,8k,1M (k is 1,024, "
                f"M is 1,000,000)."
            ) from None
    return found


def parse_bytes(text: int | str, name: str = "memory") -> int:
    """`"24GiB"` is 24 * 2^30, `"24GB"` and `"24G"` are 24 * 10^9. A number alone is refused on the command line."""
    if isinstance(text, int) and not isinstance(text, bool) and text > 0:
        return text
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]+)", str(text).strip())
    size = float(found[1]) * BYTES.get(found[2].lower(), 0) if found else 0.0
    if size < 1:
        raise ValueError(
            f"{name}={text!r}: expected a size with its unit, such as 24GiB (24 * 2^30 bytes) or 24GB = 24G "
            f"(24 * 10^9 bytes)."
        )
    return int(size)


def show_bytes(size: float) -> str:
    """GiB, MiB below 0.1 GiB, KiB below 1 MiB, and bytes below 1 KiB."""
    if size >= GIB / 10:
        return f"{size / GIB:.1f} GiB"
    if size >= 2**20:
        return f"{size / 2**20:.0f} MiB"
    return f"{size / 2**10:.0f} KiB" if size >= 2**10 else f"{size:.0f} B"


def show_seconds(seconds: float) -> str:
    """Hours, minutes, seconds or milliseconds."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 90:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
