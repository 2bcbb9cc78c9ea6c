"""Instructions in English as lines of Python. A text is parsed and compared, never run."""

from __future__ import annotations

import ast
import random
import warnings
from typing import ClassVar

from ..base import Judge, LongTask, Problem

_NAMES = "abcdefgh"
_DEEPEST = 3
_LONGEST = 200  # characters of a line that is parsed: no nesting is deep enough to trouble the parser


class CodeTask(LongTask):
    """One line of Python for each instruction, blocks included. Any spelling that parses alike is right."""

    name: ClassVar[str] = "code"
    tag: ClassVar[str] = "code"
    tokens_per_line: ClassVar[float] = 6.3

    def build(self, rng: random.Random, lines: int) -> Problem:
        """A line of the answer is a statement, or the head of a block."""
        said: list[str] = []
        out: list[str] = []
        depth = 0
        for i in range(lines):
            x, y, k = rng.choice(_NAMES), rng.choice(_NAMES), rng.randint(0, 99)
            opened = bool(out) and out[-1].endswith(":")
            if not opened and rng.random() < 0.2:
                depth = rng.randint(0, depth)
            opens = depth < _DEEPEST and i < lines - 1 and rng.random() < 0.2
            some = _heads(x, k) if opens else _statements(x, y, k)
            words, code = rng.choice(some)
            said.append("    " * depth + words)
            out.append("    " * depth + code)
            depth += opens
        ask = "Write this in Python, one line for each, with four spaces for each block."
        return self.problem("\n".join(said), ask, out)

    def judge(self, problem: Problem) -> Judge:
        """A line is right if it is as deep as the right one, by the depths before it, and parses to the same tree."""
        expected = problem.lines
        widths = [0]  # of the blocks around a line, as the text has them

        def right(i: int, line: str) -> bool:
            want, text = expected[i], line.strip()
            depth, width = (len(want) - len(want.lstrip())) // 4, len(line) - len(line.lstrip(" "))
            if depth == len(widths) and width > widths[-1]:
                widths.append(width)
            del widths[depth + 1 :]
            return len(widths) == depth + 1 and width == widths[depth] and _same(text, want.strip())

        return right


def _heads(x: str, k: int) -> list[tuple[str, str]]:
    return [
        (f"repeat {k + 1} times, counting {x}:", f"for {x} in range({k + 1}):"),
        (f"if {x} is more than {k}:", f"if {x} > {k}:"),
    ]


def _statements(x: str, y: str, k: int) -> list[tuple[str, str]]:
    return [
        (f"set {x} to {k}", f"{x} = {k}"),
        (f"add {y} to {x}", f"{x} += {y}"),
        (f"take {k} from {x}", f"{x} -= {k}"),
        (f"put {x} times {k} in {y}", f"{y} = {x} * {k}"),
        (f"show {x}", f"print({x})"),
    ]


def _same(text: str, want: str) -> bool:
    if text == want:
        return True
    tree = _tree(text)
    return tree is not None and tree == _tree(want)


def _tree(line: str) -> str | None:
    """A line's syntax tree as text; a head of a block gets a body. None for what is no Python."""
    if len(line) > _LONGEST:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an escape such as \d in a model's text
            return ast.dump(ast.parse(f"{line} pass" if line.endswith(":") else line))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


LONG_TASKS = {"code": CodeTask()}
