"""RULER's variable tracking: a chain of assignments between lines of noise (Hsieh et al. 2024, section 3.2)."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass, replace
from typing import ClassVar

from ..generated import Generated
from ..haystack import NOISE, insert
from ..sample import Sample
from ..words import letters

BEFORE = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
QUESTION = "\nQuestion: Find all variables that are assigned the value {value} in the text above."
PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {n} variables are assigned the value "
    "{value}, they are: "
)
_SHOWN = 10  # lines of noise in the worked example


@dataclass(frozen=True, kw_only=True)
class VariableTracking(Generated):
    """`chains` chains of `hops` assignments; all variables of the first are asked for, after one worked example.

    A unit is a line of noise. Lengths below 1,024 have no example, which would be most of the prompt.
    """

    chains: int = 1
    hops: int = 4
    example: bool = True
    max_new_tokens: ClassVar[int] = 30

    def at(self, length: int) -> VariableTracking:
        """Without the example below 1,024 tokens."""
        return self if length >= 1024 else replace(self, example=False)

    def build(self, rng: random.Random, units: int, fill: str, depth: float | None) -> Sample:
        """Chains of assignments between lines of noise."""
        example = ""
        if self.example:
            text, value, names = self._chain(rng, _SHOWN, 3)
            prefix = PREFIX.format(n=len(names), value=value)
            example = f"{BEFORE}{text}{QUESTION.format(value=value)}{prefix}{' '.join(names)}\n\n"
        text, value, names = self._chain(rng, units, 5, depth)
        asked = QUESTION.format(value=value), PREFIX.format(n=len(names), value=value)
        return self.sample(
            fill, "\n", text, (f"{example}{BEFORE}", *asked), answers=tuple(names), depth=depth, meta={"value": value}
        )

    def _chain(
        self, rng: random.Random, units: int, width: int, depth: float | None = None
    ) -> tuple[str, str, list[str]]:
        names: dict[str, None] = {}
        while len(names) < self.chains * (self.hops + 1):
            names[letters(rng, width, string.ascii_uppercase)] = None
        every, values = list(names), [str(rng.randrange(10_000, 99_999)) for _ in range(self.chains)]
        lines: list[tuple[int, str]] = []
        for chain, value in enumerate(values):
            own = every[chain * (self.hops + 1) : (chain + 1) * (self.hops + 1)]
            given = [value, *(f"VAR {name}" for name in own)]
            spots = (
                [round(depth * units)] * len(own) if depth is not None else rng.choices(range(units + 1), k=len(own))
            )
            lines += [(at, f"VAR {name} = {g}") for at, name, g in zip(sorted(spots), own, given, strict=False)]
        lines.sort(key=lambda line: line[0])
        text = "\n".join(insert([NOISE] * units, [text for _, text in lines], [at for at, _ in lines]))
        return text, values[0], every[: self.hops + 1]


TASKS = {"vt": lambda name, text: VariableTracking(name=name)}
