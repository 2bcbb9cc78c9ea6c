"""LongProc's path traversal: lines between "Route" tags."""

from __future__ import annotations


def inside(text: str, tag: str) -> str | None:
    """What stands between the first `<tag>` and the first `</tag>`, stripped; None without both."""
    start, end = text.find(f"<{tag}>"), text.find(f"</{tag}>")
    return None if -1 in (start, end) else text[start + len(tag) + 2 : end].strip()


def whole_route(prediction: str, answer: str) -> float:
    """1 if the route is the answer's text."""
    return float(inside(prediction, "Route") == answer.strip())


def begun_route(prediction: str, answer: str) -> float:
    """The share of lines up to the first wrong one, **which counts**: as published, a wrong first line earns 1/n."""
    route, lines = inside(prediction, "Route"), answer.strip().split("\n")
    if route is None:
        return 0.0
    if route == answer.strip():
        return 1.0
    pairs = list(zip(lines, route.split("\n"), strict=False))
    wrong = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs) - 1)
    return (wrong + 1) / len(lines)
