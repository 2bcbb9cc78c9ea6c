"""Multiple choice: LongBench v2's letter, and L-Eval's letters."""

from __future__ import annotations

import re
from collections.abc import Sequence

_V2 = (re.compile(r"The correct answer is \(([A-D])\)"), re.compile(r"The correct answer is ([A-D])"))
_ALONE = re.compile(r"(?<![A-Za-z])[A-D](?![A-Za-z])")
# the article of an option's text is no letter: "(B) A miller", but "(B) and A", and A where the line begins
_NO_ARTICLE = re.compile(r"(?<![A-Za-z])(?:[B-D]|A(?!\s+(?!(?:and|or)\b)[a-z]))(?![A-Za-z])|^[^A-Za-z]*A(?![A-Za-z])")
_RUN = re.compile(r"[^A-Za-z]*([A-D]{2,4})(?![A-Za-z])")
_MARKED = re.compile(r"^[^A-Za-z]*([A-D])(?![A-Za-z])|\(([A-D])\)")  # where a line begins, or in parentheses
_BARE = re.compile(r"[A-D]{1,4}[,;]?|and|&")


def letter(prediction: str) -> str | None:
    """The letter in "The correct answer is (B)", with or without parentheses and asterisks (LongBench v2)."""
    plain = prediction.replace("*", "")
    found = next((match for pattern in _V2 if (match := pattern.search(plain))), None)
    return None if found is None else found.group(1)


def choice(prediction: str, answers: Sequence[str]) -> float:
    """1 if the letter is the answer; 0 also where there is none."""
    return float(letter(prediction) in [right_letters(answer) for answer in answers])


def choice_compensated(prediction: str, answers: Sequence[str]) -> float:
    """The same, but a quarter, the chance of a guess, where there is no letter ("compensated" in LongBench v2)."""
    return 0.25 if letter(prediction) is None else choice(prediction, answers)


def letters(prediction: str) -> str:
    """The letters A to D that stand alone in the first line that has some, sorted; "AC" together counts as two."""
    for line in prediction.strip().split("\n"):
        run = _RUN.match(line)
        found = set(run.group(1)) if run else set("".join(_NO_ARTICLE.findall(line))) or set(_ALONE.findall(line))
        if found := found & set("ABCD"):
            return "".join(sorted(found))
    return ""


def one_letter(prediction: str) -> str:
    """The letter that is chosen where one is right: the first that begins a line or is in parentheses, else alone."""
    for line in prediction.strip().split("\n"):
        if _RUN.match(line):
            return letters(line)
        marked, alone = _MARKED.search(line), _NO_ARTICLE.search(line) or _ALONE.search(line)
        if marked:
            return str(marked.group(1) or marked.group(2))
        if alone:
            return alone.group().strip()[-1]
    return ""


def right_letters(answer: str) -> str:
    """The letters of a reference: "B", "ACD", "A, C", or the first of "(B) the option's text"; "" if there are none."""
    words = answer.split()
    some = words if words and all(map(_BARE.fullmatch, words)) else words[:1]
    return "".join(sorted(set("".join(re.findall("[A-D]", " ".join(some))))))


def letters_partial(prediction: str, answers: Sequence[str]) -> float:
    """1 for exactly the right letters; a quarter for some of several and no wrong one (L-Eval's coursera)."""
    given = set(letters(prediction))
    best = 0.0
    for answer in answers:
        right = set(right_letters(answer))
        best = max(best, 1.0 if given and given == right else 0.25 if given and given < right else 0.0)
    return best


def letters_exact(prediction: str, answers: Sequence[str]) -> float:
    """1 for exactly the right letters (L-Eval's other multiple-choice tasks)."""
    several, one = letters(prediction), one_letter(prediction)
    right = [right_letters(answer) for answer in answers]
    return float(any(found and found == (one if len(found) == 1 else several) for found in right))
