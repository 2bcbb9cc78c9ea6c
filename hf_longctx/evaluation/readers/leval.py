"""L-Eval (An et al. 2023, https://arxiv.org/abs/2307.11088): one document and many questions a line.

Each question becomes a sample; a document that is too long loses its end. The files are GPL-3.0 and the user's own; the
prompt is ours, the scores are those of the paper's closed-ended tasks. Open-ended tasks are told the reference's
length, as the paper does, and scored by ROUGE; its LLM judge is not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hf_longctx.evaluation.readers.files import Record, records
from hf_longctx.evaluation.tasks.sample import Sample

KEYS = ("instructions", "outputs", "input")
BY_TASK = {
    "coursera": "letters_partial",
    "quality": "letters_exact",
    "tpo": "letters_exact",
    "sci_fi": "exact",
    "gsm100": "last_number",
    "topic_retrieval_longchat": "contains",
    "codeU": "contains",
}
BY_EVALUATION = {
    "exam": "exact",
    "f1": "qa_f1",
    "rouge": "rouge_overall",
    "human": "rouge_overall",
    "LLM": "rouge_overall",
}
LETTERS = " Answer with the letter of the right choice only, or with all letters if several are right."


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of a task's file, whose stem is the task; ValueError names the line and key of what is wrong."""
    task = Path(path).stem
    for record in records(path, KEYS):
        asked, answers = record.many("instructions"), record.many("outputs")
        if len(asked) != len(answers):
            raise record.wrong(f"{len(asked)} instructions and {len(answers)} outputs; expected as many of each.")
        metric = BY_TASK.get(task) or BY_EVALUATION.get(str(record.get("evaluation")))
        if metric is None:
            known = ", ".join(BY_EVALUATION)
            raise record.wrong(f"'evaluation' is {record.get('evaluation')!r} of the unknown task {task!r}; "
                               f"expected one of {known}.")  # fmt: skip
        for i, (question, answer) in enumerate(zip(asked, answers, strict=True)):
            yield _sample(record, task, metric, i, str(question), str(answer))


def _sample(record: Record, task: str, metric: str, i: int, question: str, answer: str) -> Sample:
    hint = LETTERS if metric.startswith("letters") else ""
    if metric == "rouge_overall":
        hint = f" We need a {len(answer.split())} words answer."
    return Sample(
        id=f"{record.line}-{i}", task=task, instruction="Read this document, then do what is asked behind it.\n\n",
        context=record.text("input"), question=f"\n\nInstruction: {question}{hint}", answer_prefix=" Answer:",
        answers=(answer,), max_new_tokens=512, metric=metric, cut="document", meta={"source": record.get("source")},
    )  # fmt: skip
