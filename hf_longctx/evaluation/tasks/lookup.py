"""Records of one kind, one of which is asked for: key-value pairs and LongChat's lines."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import ClassVar

from ...upstream.installing import Package
from ..generated import Generated
from ..sample import Sample
from ..words import WONDERWORDS, a_uuid, distinct

EXTRACT = "Extract the value corresponding to the specified key in the JSON object below.\n\n"
REMEMBER = (
    "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and contains a "
    "'<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line index, memorize its corresponding "
    "<REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the corresponding <REGISTER_CONTENT> of "
    "a certain line index. Now the record start:\n\n"
)
ASK = "\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line {name}? I need the number."


@dataclass(frozen=True, kw_only=True)
class KeyValue(Generated):
    """A JSON object of UUIDs, one of whose values is asked for ("Lost in the Middle", Liu et al. 2023, section 3)."""

    max_new_tokens: ClassVar[int] = 64

    def build(self, rng: random.Random, units: int, fill: str, depth: float | None) -> Sample:
        """A unit is a pair."""
        keys = distinct(rng, "uuids", units)
        pairs = {key: a_uuid(rng) for key in keys}
        at = rng.randrange(units) if depth is None else round(depth * (units - 1))
        lines = ",\n ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs.items())
        prompt = EXTRACT, f'\n\nKey: "{keys[at]}"\nCorresponding value:', ""
        where = {"depth": at / max(units - 1, 1), "meta": {"pairs": units}}
        return self.sample(fill, "\n", f"JSON data:\n{{{lines}}}", prompt, answers=(pairs[keys[at]],), **where)


@dataclass(frozen=True, kw_only=True)
class Lines(Generated):
    """LongChat's lines (Li et al. 2023): numbers registered under two words, one of which is asked for."""

    metric: ClassVar[str] = "first_integer"
    max_new_tokens: ClassVar[int] = 35

    @property
    def packages(self) -> tuple[Package, ...]:
        """That of the lines' names."""
        return (WONDERWORDS,)

    def build(self, rng: random.Random, units: int, fill: str, depth: float | None) -> Sample:
        """A unit is a line."""
        names = distinct(rng, "words", units)
        numbers = [rng.randrange(1, 50_001) for _ in names]
        at = rng.randrange(units) if depth is None else round(depth * (units - 1))
        lines = "".join(
            f"line {name}: REGISTER_CONTENT is <{number}>\n" for name, number in zip(names, numbers, strict=True)
        )
        prompt = REMEMBER, ASK.format(name=names[at]), ""
        where = {"depth": at / max(units - 1, 1), "meta": {"lines": units}}
        return self.sample(fill, "\n", lines, prompt, answers=(str(numbers[at]),), **where)


TASKS = {"kv": lambda name, text: KeyValue(name=name), "lines": lambda name, text: Lines(name=name)}
