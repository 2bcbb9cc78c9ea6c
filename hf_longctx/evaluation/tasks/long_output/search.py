"""The search behind countdown: all ways to combine numbers, depth first, as lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

LARGEST = 2000  # results above it are dropped, as are those below 1


class Leaf(NamedTuple):
    """A result in which all numbers were used: lines of the search up to it, its value and its steps."""

    lines: int
    value: int
    steps: tuple[str, ...]


def result(a: int, sign: str, b: int) -> int | None:
    """`a sign b`, or None if it is not a whole number."""
    if sign == "/":
        return a // b if b and a % b == 0 else None
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def take(left: list[int], a: int, b: int, value: int) -> bool:
    """Put `value` in the place of two of the numbers that are left; False if one of them is not."""
    for number in (a, b):
        if number not in left:
            return False
        left.remove(number)
    left.append(value)
    return True


def walk(numbers: Sequence[int], lines: list[str], most: int, before: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """The leaves of the search in order, until `lines`, to which its lines are appended, has `most`."""
    ordered = sorted(numbers, reverse=True)
    for i, a in enumerate(ordered):
        for j in range(i + 1, len(ordered)):
            rest = [*ordered[:i], *ordered[i + 1 : j], *ordered[j + 1 :]]
            for sign in "+-*/":
                value = result(a, sign, ordered[j])
                if value is None or not 1 <= value <= LARGEST:
                    continue
                if len(lines) >= most:
                    return
                step = f"{a}{sign}{ordered[j]}={value}"
                mark = ">" * (len(before) + 1)
                left = " ".join(map(str, sorted([*rest, value], reverse=True)))
                lines.append(f"{mark} {step} left {left}" if rest else f"{mark} {step}")
                if rest:
                    yield from walk([*rest, value], lines, most, (*before, step))
                else:
                    yield Leaf(len(lines), value, (*before, step))
