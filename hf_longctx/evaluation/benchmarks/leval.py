"""L-Eval (An et al. 2023, https://arxiv.org/abs/2307.11088): one document and many questions per line.

Each question becomes a sample; a document that is too long loses its end. The files are GPL-3.0 and the user's own; the
prompt is hf_longctx's, the scores are those of the official code. Open-ended tasks are told the reference's length, as
there, and scored by token F1 or ROUGE, as each line's `evaluation` says. Lines for a judge or for people (`LLM`,
`human`) are left out of a file's score, as there; a file of nothing else is scored by ROUGE, as a proxy. Questions of
sci_fi have two answers, by the text and by the facts: the official code asks twice, the second time without the
document; here both are asked for at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..metrics import JUDGED
from ..records import Record, records
from ..sample import Sample
from ..scoring import Metric, best, every, normalise, rouge

KEYS = ("instructions", "outputs", "input")
BY_TASK = {
    "coursera": "letters_partial",
    "quality": "letters_exact",
    "tpo": "letters_exact",
    "sci_fi": "loyal_and_true",
    "gsm100": "last_number",
    "topic_retrieval_longchat": "first_line",
    "codeU": "code_output",
}
OTHERS = ("human", "LLM")  # who evaluates, where no rule does
BY_EVALUATION = {"exam": "first_line", "f1": "qa_f1", **dict.fromkeys(("rouge", *OTHERS), "rouge_overall")}
BEFORE = "Read this document, then do what is asked behind it.\n\n"
COMMON = {"instruction": BEFORE, "answer_prefix": " Answer:", "max_new_tokens": 512, "cut": "document"}
LETTERS = " Answer with the letter of the right choice only, or with all letters if several are right."
TWICE = (
    " Answer True or False by the document, and then in brackets by the facts of the real world, in the form: "
    "True or False [fact: True or False]"
)

_TOLD = re.compile(r"The answer is (\S+)")
_JUDGED = re.compile(r"true|false")
FACT = "[fact:"  # where the second answer of sci_fi begins
# words around the printed value of codeU
_AROUND = ("will be", "of the code", "is", "would be", "the value of", "the result of", "printed")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_ALONE = re.compile(r"(?<![A-Za-z])[A-D](?![A-Za-z])")
# the article of an option's text is no letter: "(B) A miller", but "(B) and A", and A where the line begins
_NO_ARTICLE = re.compile(r"(?<![A-Za-z])(?:[B-D]|A(?!\s+(?!(?:and|or)\b)[a-z]))(?![A-Za-z])|^[^A-Za-z]*A(?![A-Za-z])")
_RUN = re.compile(r"[^A-Za-z]*([A-D]{2,4})(?![A-Za-z])")
_MARKED = re.compile(r"^[^A-Za-z]*([A-D])(?![A-Za-z])|\(([A-D])\)")  # where a line begins, or in parentheses
_BARE = re.compile(r"[A-D]{1,4}[,;]?|and|&")


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of a task's file, whose stem is the task; ValueError names the line and key of what is wrong."""
    task = Path(path).stem
    found = list(records(path, KEYS))
    judged = any(record.get("evaluation") not in OTHERS for record in found)
    for record in found:
        asked, answers = record.many("instructions"), record.many("outputs")
        if len(asked) != len(answers):
            raise record.wrong(f"{len(asked)} instructions and {len(answers)} outputs; expected as many of each.")
        evaluation = record.get("evaluation")
        metric = BY_TASK.get(task) or BY_EVALUATION.get(str(evaluation))
        if metric is None:
            known = ", ".join(BY_EVALUATION)
            raise record.wrong(f"'evaluation' is {evaluation!r} of the unknown task {task!r}; expected one of {known}.")
        if evaluation in OTHERS and judged:
            metric = JUDGED
        for i, (question, answer) in enumerate(zip(asked, answers, strict=True)):
            for key, value in (("instructions", question), ("outputs", answer)):
                if not isinstance(value, str | int | float) or not str(value).strip():
                    raise record.wrong(f"the key {key!r} has {value!r:.60} at {i}; expected texts that are not blank.")
            yield _sample(record, task, metric, i, str(question), str(answer))


def _sample(record: Record, task: str, metric: str, i: int, question: str, answer: str) -> Sample:
    hint, source = "", record.get("source")
    if metric.startswith("letters"):
        hint, answer = LETTERS, _letters(record, i, question, answer)
    elif metric == "loyal_and_true":
        hint = TWICE if FACT in answer.lower() else ""
    elif metric in ("rouge_overall", JUDGED):
        hint = f" We need a {len(answer.split())} words answer."
    prompt = {"context": record.text("input"), "question": f"\n\nInstruction: {question}{hint}", "answers": (answer,)}
    about = {"id": f"{record.line}-{i}", "task": task, "metric": metric, "meta": {"source": source}}
    return record.sample(**COMMON, **prompt, **about)


def _letters(record: Record, i: int, question: str, answer: str) -> str:
    """A reference of multiple choice, which names its letters, or is an option's text without one."""
    options = re.findall(r"^\s*\(?([A-D])[).]\s*(.*?)\s*$", question, re.M)
    found = [letter for letter, text in options if text == answer.strip()]
    if len(found) != 1:
        if right_letters(answer):
            return answer
        raise record.wrong(f"'outputs' has {answer!r:.60} at {i}; expected letters A to D, as in '(B) text' or 'ACD'.")
    return found[0]


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


def exact(prediction: str, answer: str) -> float:
    """1 if the normal forms are equal."""
    return float(normalise(prediction) == normalise(answer))


def last_number(prediction: str, answers: Sequence[str]) -> float:
    """1 if the number after "The answer is", or else the last of the first paragraph, is a reference's (gsm100)."""
    given = _value(prediction)
    return float(given is not None and any(given == _value(answer) for answer in answers))


def first_line(prediction: str, answer: str) -> float:
    """1 if both are the same number, or the first line of two signs or more contains the reference (other exams).

    White space and case do not count.
    """
    try:
        return float(float(prediction) == float(answer))
    except ValueError:
        pass
    line = next((line for line in prediction.split("\n") if len(line) > 1), prediction)
    return float("".join(answer.lower().split()) in "".join(line.lower().split()))


def code_output(prediction: str, answer: str) -> float:
    """1 if the printed value is among the last words, or those after "the final output" (codeU)."""
    text, most = _code(prediction), len(answer.split()) + 3
    for around in _AROUND:
        text = text.replace(around, "")
    _, mark, after = text.rpartition("the final output")
    words = re.split(r"\s+", after)[:most] if mark else re.split(r"\s+", text)[-most:]
    return first_line(" ".join(words), _code(answer))


def judgements(text: str) -> tuple[str | None, ...]:
    """The "true" or "false" of sci_fi's "True [fact: False]": by the text, and by the facts where they are there."""
    parts = text.lower().split(FACT, 1)
    return tuple(found.group() if (found := _JUDGED.search(part)) else None for part in parts)


def loyal_and_true(prediction: str, answer: str) -> float:
    """Share of the reference's judgements that the prediction has: loyal to the text, and to the facts (sci_fi)."""
    right, given = judgements(answer), judgements(prediction)
    return sum(one == other for one, other in zip(right, given, strict=False)) / len(right)


def rouges(prediction: str, answer: str) -> tuple[float, ...]:
    """F of ROUGE-1, ROUGE-2 and ROUGE-L."""
    return tuple(rouge(prediction, answer, kind, "f") for kind in ("rouge-1", "rouge-2", "rouge-l"))


def rouge_overall(prediction: str, answer: str) -> float:
    """Geometric mean of the F of ROUGE-1, ROUGE-2 and ROUGE-L."""
    return float(math.prod(rouges(prediction, answer)) ** (1 / 3))


def rouge_overall_mean(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Of a task: the geometric mean of the three means, each of the best reference's, as the official code has it."""
    best = [
        [max(values) for values in zip(*(rouges(prediction, answer) for answer in right), strict=True)]
        for prediction, right in zip(predictions, answers, strict=True)
    ]
    means = [sum(values) / len(best) for values in zip(*best, strict=True)]
    return float(math.prod(means) ** (1 / 3))


def _code(text: str) -> str:
    text = re.sub(r"\s+", " ", text)
    for gone in (",", "'", "\\", ".0"):
        text = text.replace(gone, "")
    return text.replace("] [", "][").replace("[ [", "[[").replace("] ]", "]]")


def _value(text: str) -> float | None:
    told = _TOLD.search(text)
    for part in (told.group(1) if told else "", text.strip().split("\n\n")[0], text):
        if found := _NUMBER.findall(part):
            return float(found[-1].replace(",", ""))
    return None


LETTERED = (right_letters, 'letters A to D, such as "B", "(B) text" or "ACD"')
METRICS = {
    "letters_exact": Metric(every(letters_exact), shape=LETTERED),
    "letters_partial": Metric(every(letters_partial), shape=LETTERED),
    "exact": Metric(best(exact)),
    "last_number": Metric(every(last_number), shape=(lambda answer: _value(answer) is not None, "a number")),
    "first_line": Metric(best(first_line), inside=True),
    "code_output": Metric(best(code_output), inside=True),
    "loyal_and_true": Metric(
        best(loyal_and_true),
        shape=(lambda answer: None not in judgements(answer), '"True [fact: False]", or one of the two'),
    ),
    "rouge_overall": Metric(
        best(rouge_overall), lambda predictions, samples: rouge_overall_mean(predictions, [s.answers for s in samples])
    ),
}
