"""L-Eval's files by the shapes that they really have, and its official rules (Evaluation/auto_eval.py, em.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.evaluation import read, score, scores
from hf_longctx.evaluation.benchmarks.leval import letters, one_letter, right_letters, rouges
from hf_longctx.evaluation.sample import Sample

OPTIONS = "Who came?\n\n (A) A baker \n (B) A miller \n (C) Nobody \n (D) All of them"


def file(path: Path, *rows: dict[str, Any]) -> Path:
    whole = ({"input": "A story.", "source": "x", "evaluation": "exam", **row} for row in rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in whole), encoding="utf-8")
    return path


def one(folder: Path, task: str, answer: Any, question: str = "Which?", evaluation: str = "exam") -> Sample:
    row = {"instructions": [question], "outputs": [answer], "evaluation": evaluation}
    (sample,) = read("leval", file(folder / f"{task}.jsonl", row))
    return sample


@pytest.mark.parametrize("task", ["quality", "tpo", "coursera"])
@pytest.mark.parametrize(
    "answer", ["(B) A miller", "B", "(B)", "B. A miller", "B) A miller", "(B) x\n(C) y", "A miller"]
)
def test_letters_of_references(tmp_path: Path, task: str, answer: str) -> None:
    sample = one(tmp_path, task, answer, OPTIONS)
    for said in (
        "B",
        "(B)",
        "(B) A miller",
        "B. A miller",
        "The answer is B.",
        "The answer is (B), since A is not",
        " B\n",
    ):
        if task != "coursera" or "since" not in said:  # where it may be several
            assert score(said, sample) == 1, said
    for said in ("C", "(A) A baker", "A", "nobody", "", "AB"):
        assert score(said, sample) == 0, said


@pytest.mark.parametrize("answer", ["AC", "A, C", "A and C", "CA"])
def test_several_letters(tmp_path: Path, answer: str) -> None:
    sample = one(tmp_path, "coursera", answer)
    found = [score(said, sample) for said in ("AC", "C, A", "A and C", "A", "ABC", "(A) (C)")]
    assert found == [1, 1, 1, 0.25, 0, 1]


def test_letters_by_hand() -> None:
    assert [right_letters(t) for t in ("(D) 406", "ABD", "no", "", "A. Both B and C")] == ["D", "ABD", "", "", "A"]
    assert [letters(t) for t in ("(B) A cat", "A cat", "I say A", "It is a cat", "A or B")] == ["B", "A", "A", "", "AB"]
    assert [one_letter(t) for t in ("A miller: (B)", "It is A or (B)", "x\nD", "none")] == ["A", "B", "D", ""]


def test_loyal_to_the_text_and_to_the_facts(tmp_path: Path) -> None:
    sample = one(tmp_path, "sci_fi", "True [fact: False]", "Is the moon inhabited, True or False?")
    assert "by the facts of the real world" in sample.question
    said = {
        "True [fact: False]": 1, "true. [Fact: false.]": 1, "The answer is True [fact: it is False, surely]": 1,
        "True": 0.5, "True.": 0.5, "True [fact: True]": 0.5, "False [fact: False]": 0.5, "False": 0, "": 0, "[fact:": 0,
    }  # fmt: skip
    assert {text: score(text, sample) for text in said} == said
    plain = one(tmp_path, "sci_fi", "False", "Is the moon inhabited?")
    assert [score(text, plain) for text in ("False", "It is false.", "True")] == [1, 1, 0]
    assert "fact" not in plain.question


def test_numbers_first_lines_and_code(tmp_path: Path) -> None:
    sample = one(tmp_path, "gsm100", "3 and 4 make 7. The answer is 7.")
    said = ("The answer is 7. Next, 9 apples", "so 3 + 4 = 7\n\nQuestion: 5", "7.0", "The answer is 3, not 7", "")
    assert [score(text, sample) for text in said] == [1, 1, 1, 0, 0]
    sample = one(tmp_path, "topic_retrieval_longchat", "the sea and the sky")
    said = ("The Sea and the  sky.", "\n'the sea and the sky'\n", "The moon\nthe sea and the sky")
    assert [score(text, sample) for text in said] == [1, 1, 0]
    sample = one(tmp_path, "codeU", "[6 15]")
    said = (
        "The final output will be:\n\narray(\\[6, 15\\])",
        "[6, 15] at first, then nothing more of that kind",
        "[6 1]",
    )
    assert [score(text, sample) for text in said] == [1, 0, 0]
    sample = one(tmp_path, "mine", "12")
    assert (sample.metric, score("12.0", sample), score("so 12\n13", sample)) == ("first_line", 1, 1)


def test_several_kinds_of_evaluation_in_a_file(tmp_path: Path) -> None:
    rows = [
        {"instructions": ["Who?", "Where?"], "outputs": ["the baker", "here"], "evaluation": "f1"},
        {"instructions": ["Why?"], "outputs": ["it was late"], "evaluation": "LLM"},
        {"instructions": ["Sum up."], "outputs": ["one two three"], "evaluation": "rouge"},
        {"instructions": ["How?"], "outputs": ["slowly"], "evaluation": "human"},
    ]
    samples = list(read("leval", file(tmp_path / "financial_qa.jsonl", *rows)))
    total, each = scores(["the baker", "there", "it was late", "one two three", "slowly"], samples)
    assert each == [1, 0, None, pytest.approx(1, abs=1e-5), None]
    assert total == pytest.approx(2 / 3, abs=1e-5)
    only = list(read("leval", file(tmp_path / "paper.jsonl", rows[1])))
    assert scores(["it was late"], only)[0] == pytest.approx(1, abs=1e-5)  # a proxy, where nothing else is there


def test_the_mean_of_rouge_is_taken_before_the_three_are_put_together(tmp_path: Path) -> None:
    row = {"instructions": ["a", "b"], "outputs": ["one two three", "one two three"], "evaluation": "rouge"}
    samples = list(read("leval", file(tmp_path / "news_summ.jsonl", row)))
    said = ["three two one", "one two three four"]
    a, b = (rouges(text, "one two three") for text in said)
    means = [(x + y) / 2 for x, y in zip(a, b, strict=True)]
    total, each = scores(said, samples)
    assert each[0] == 0  # no bigram in common
    assert total == pytest.approx((means[0] * means[1] * means[2]) ** (1 / 3))
    assert total > sum(map(float, each)) / 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "answer", "message"),
    [
        ("quality", "somebody else", "'outputs' has 'somebody else' at 0; expected letters A to D"),
        ("sci_fi", "Perhaps", "the reference 'Perhaps': loyal_and_true compares with \"True"),
        ("gsm100", "many", "the reference 'many': last_number compares with a number"),
        ("quality", None, "the key 'outputs' has None at 0; expected texts that are not blank"),
        ("news_summ", " ", "the key 'outputs' has ' ' at 0"),
        ("codeU", ["x"], r"the key 'outputs' has \['x'\] at 0"),
    ],
)
def test_references_that_no_answer_can_meet(tmp_path: Path, task: str, answer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{task}\.jsonl, line 1: {message}"):
        one(tmp_path, task, answer)
