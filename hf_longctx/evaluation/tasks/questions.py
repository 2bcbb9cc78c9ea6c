"""RULER's question answering: paragraphs with the answer among others (Hsieh et al. 2024, section 3.4).

The questions are SQuAD's (qa_1) and HotpotQA's (qa_2). Neither is bundled: both read a file that the user has.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..generated import FromFile, Generated
from ..records import whole_text
from ..sample import Sample

ASK = "Answer the question based on the given documents. Only give me the answer and do not output any other words."

BEFORE = f"{ASK}\n\nThe following are given documents.\n\n"


@dataclass(frozen=True)
class Item:
    """A question, its references, and the numbers of the documents that belong to it."""

    question: str
    answers: tuple[str, ...]
    own: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Questions(Generated):
    """The question's own documents and `units` others, shuffled."""

    documents: tuple[str, ...]
    items: tuple[Item, ...]
    metric: ClassVar[str] = "string_match_part"
    max_new_tokens: ClassVar[int] = 32
    least: ClassVar[int] = 0

    @classmethod
    def of(cls, name: str, path: str | Path) -> Questions:
        """The task "qa_1" (SQuAD) or "qa_2" (HotpotQA) on a local file.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not text, not JSON, or not in the data set's format.
        """
        holds = FROM_FILE[name].holds
        try:
            data = json.loads(whole_text(path))
            documents, items = (_squad if name == "qa_1" else _hotpot)(data)
        except (KeyError, TypeError, IndexError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: {name} reads {holds}, and this is not it ({error!r}).") from error
        if not items:
            raise ValueError(f"{path} holds no question that has an answer. {name} reads {holds}.")
        for i, item in enumerate(items, 1):
            if not all(isinstance(answer, str) and answer.strip() for answer in item.answers):
                raise ValueError(f"{path}, question {i}: its answers are {item.answers!r:.60}; expected texts.")
        return cls(name=name, documents=tuple(documents), items=tuple(items))

    def build(self, rng: random.Random, units: int, fill: str, depth: float | None) -> Sample:
        """A random question; when the other documents are used up, they come again, as in the official code."""
        if depth is not None:
            raise ValueError(f"depth={depth}: the documents of {self.name} are shuffled. Leave the depth out.")
        item = rng.choice(self.items)
        others = [i for i in range(len(self.documents)) if i not in item.own]
        rng.shuffle(others)
        many = [others[i % len(others)] for i in range(units)] if others else []
        chosen = [*item.own, *many]
        rng.shuffle(chosen)
        text = "\n\n".join(f"Document {i}:\n{self.documents[at]}" for i, at in enumerate(chosen, 1))
        prompt = BEFORE, f"\n\n{ASK}\n\nQuestion: {item.question}", " Answer:"
        return self.sample(fill, "\n\n", text, prompt, answers=item.answers, meta={"documents": len(chosen)})


def _squad(data: Any) -> tuple[list[str], list[Item]]:
    documents = sorted({p["context"] for article in data["data"] for p in article["paragraphs"]})
    place = {text: i for i, text in enumerate(documents)}
    items = [
        Item(qa["question"], tuple(answer["text"] for answer in qa["answers"]), (place[p["context"]],))
        for article in data["data"]
        for p in article["paragraphs"]
        for qa in p["qas"]
        if not qa.get("is_impossible") and qa["answers"]
    ]
    return documents, items


def _hotpot(data: Any) -> tuple[list[str], list[Item]]:
    texts = [[f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]] for row in data]
    documents = sorted({text for some in texts for text in some})
    place = {text: i for i, text in enumerate(documents)}
    items = [
        Item(row["question"], (row["answer"],), tuple(place[text] for text in some))
        for row, some in zip(data, texts, strict=True)
    ]
    return documents, items


FROM_FILE = {
    "qa_1": FromFile('SQuAD\'s dev-v2.0.json ({"data": [{"paragraphs": [{"context", "qas": [...]}]}]})', Questions.of),
    "qa_2": FromFile(
        'HotpotQA\'s hotpot_dev_distractor_v1.json ([{"question", "answer", "context": [[title, sentences]]}])',
        Questions.of,
    ),
}
