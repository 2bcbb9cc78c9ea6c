"""Scores of long answers that need no judge: LongWriter's length score, and SGT's rates.

LongWriter (Bai et al. 2024, https://arxiv.org/abs/2408.07055, section 3.2); SGT / LongGenBench (Wu et al. 2024,
https://arxiv.org/abs/2409.02076). HelloBench and the quality scores of the other two are a judge's and not here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .longbench import normalise

_CHINESE, _ENGLISH = re.compile(r"[\u4e00-\u9fff]"), re.compile(r"\b[a-zA-Z]+\b")


def n_words(text: str) -> int:
    """Chinese characters and English words, as LongWriter counts them."""
    return len(_CHINESE.findall(text)) + len(_ENGLISH.findall(text))


def length_score(text: str, required: int) -> float:
    """LongWriter's S_l over 100: 1 at `required` words, 0 at four times and at a third of it, and for no word at all.

    Raises:
        ValueError: `required` is below 1.
    """
    if required < 1:
        raise ValueError(f"required={required}: expected a length of at least one word.")
    found = n_words(text)
    if found == 0:
        return 0.0
    if found > required:
        return max(0.0, 1 - (found / required - 1) / 3)
    return max(0.0, 1 - (required / found - 1) / 2)


def long_enough(text: str, required: int) -> float:
    """Share of `required` words, at most 1: what HelloBench's "no shorter than" variants ask for. A proxy, no judge."""
    return min(1.0, n_words(text) / required)


def sections(text: str, kind: str) -> dict[int, str]:
    """SGT's numbered sections of an answer, up to "*** finished": {number: text}. A number's first section counts."""
    found: dict[int, str] = {}
    for part in text.split("*** finished")[0].split("#*#"):
        match = re.search(rf"{re.escape(kind)} (\d+)", part)
        if match:
            found.setdefault(int(match.group(1)), part)
    return found


def completion_rate(text: str, kind: str, number: int) -> float:
    """SGT's CR: sections that are there over those asked for."""
    return len([i for i in sections(text, kind) if 1 <= i <= number]) / number


def instructions_followed(text: str, kind: str, checks: Mapping[int, str | Sequence[str]]) -> tuple[float, float]:
    """Proxies of SGT's STIC-1 and STIC-2: checks that hold, over those whose section is there and over all of them.

    The official judge is an LLM that is asked whether a section includes a check; here the words of the check have to
    be in it. A section may have several.
    """
    there = sections(text, kind)
    every = [(i, one) for i, some in checks.items() for one in ([some] if isinstance(some, str) else some)]
    present = [(i, one) for i, one in every if i in there]
    held = sum(_includes(there[i], one) for i, one in present)
    return (held / len(present) if present else 0.0), (held / len(every) if every else 0.0)


def _includes(text: str, check: str) -> bool:
    words = set(normalise(text).split())
    wanted = normalise(check).split()
    return bool(wanted) and sum(word in words for word in wanted) / len(wanted) >= 0.8
