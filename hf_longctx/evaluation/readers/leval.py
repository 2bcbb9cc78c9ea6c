"""L-Eval (An et al. 2023, https://arxiv.org/abs/2307.11088): one document and many questions a line.

Each question becomes a sample; a document that is too long loses its end. The files are GPL-3.0 and the user's own; the
prompt is ours, the scores are those of the official code. Open-ended tasks are told the reference's length, as there,
and scored by token F1 or ROUGE, as each line's `evaluation` says. Lines that are for a judge or for people (`LLM`,
`human`) are left out of a file's score, as there; a file of nothing else is scored by ROUGE, as a proxy. Questions of
sci_fi have two answers, by the text and by the facts: the official code asks twice, the second time without the
document, and ours once for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..metrics.choice import right_letters
from ..metrics.leval import FACT
from ..metrics.needs import JUDGED
from ..tasks.sample import Sample
from .files import Record, records

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
LETTERS = " Answer with the letter of the right choice only, or with all letters if several are right."
TWICE = (
    " Answer True or False by the document, and then in brackets by the facts of the real world, in the form: "
    "True or False [fact: True or False]"
)


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
    return record.checked(Sample(
        id=f"{record.line}-{i}", task=task, instruction="Read this document, then do what is asked behind it.\n\n",
        context=record.text("input"), question=f"\n\nInstruction: {question}{hint}", answer_prefix=" Answer:",
        answers=(answer,), max_new_tokens=512, metric=metric, cut="document", meta={"source": source},
    ))  # fmt: skip


def _letters(record: Record, i: int, question: str, answer: str) -> str:
    """A reference of multiple choice, which names its letters, or is an option's text without one."""
    options = re.findall(r"^\s*\(?([A-D])[).]\s*(.*?)\s*$", question, re.M)
    found = [letter for letter, text in options if text == answer.strip()]
    if len(found) != 1:
        if right_letters(answer):
            return answer
        raise record.wrong(f"'outputs' has {answer!r:.60} at {i}; expected letters A to D, as in '(B) text' or 'ACD'.")
    return found[0]
