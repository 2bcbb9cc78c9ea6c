"""Records without a reference, and fields that are null or of another type: every reader names file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.evaluation import read, scores
from hf_longctx.evaluation.metrics import check
from hf_longctx.evaluation.sample import Sample
from hf_longctx.evaluation.suite import collect
from hf_longctx.evaluation.task import Grid
from hf_longctx.evaluation.tasks.questions import Questions
from tests.evaluation.test_readers import EXAMPLES, write

REFERENCES = {
    "longbench": "answers", "longbench2": "answer", "leval": "outputs", "m4le": "answers", "ruler": "outputs",
    "longchat": "expected_number", "giraffe": "conversations", "jsonl": "answer",
}  # fmt: skip
MINE = {"task": "mine", "context": "c", "question": "q", "answers": ["7"], "max_new_tokens": 3, "metric": "contains"}


def attempt(name: str, path: Path) -> list[Sample] | str:
    """The samples of a file, or what is said to be wrong with it."""
    try:
        return list(read(name, path))
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("empty", [[], None, [None], "", [""], {}, True], ids=repr)
def test_no_reference(tmp_path: Path, name: str, empty: Any) -> None:
    file, record, _, _ = EXAMPLES[name]
    given = empty
    if name == "giraffe" and isinstance(empty, str):
        given = [{"value": "Doc."}, {"value": empty}]
    path = write(tmp_path / file, record, {**record, REFERENCES[name]: given})
    counted = "item" if file.endswith(".json") else "line"
    with pytest.raises(ValueError, match=rf"{file}, {counted} 2: "):
        list(read(name, path))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_null_is_named_or_means_that_there_is_nothing(tmp_path: Path, name: str) -> None:
    """In whatever field: no prompt, answer or group says "None"."""
    file, record, _, _ = EXAMPLES[name]
    for key in record:
        path = write(tmp_path / file, {**record, key: None})
        found = attempt(name, path)
        if isinstance(found, str):
            assert file in found, key
            continue
        for sample in found:
            told = [sample.id, sample.task, sample.user, sample.answer_prefix, *sample.answers, *sample.stop]
            assert not any("None" in text for text in [*told, *sample.meta.get("groups", ())]), key
            check([sample])
            scores(["a"], [sample])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ruler", {"answer_prefix": None}, "the key 'answer_prefix' is None; expected a text"),
        ("ruler", {"answer_prefix": 3}, "the key 'answer_prefix' is 3; expected a text"),
        ("jsonl", {"answer_prefix": None}, "answer_prefix=None: expected a string"),
        ("jsonl", {"answers": ["7", None]}, "answers has None in it: expected a string or a list of strings"),
        ("jsonl", {"stop": [None]}, "stop has None in it: expected a list of strings"),
        ("jsonl", {"answers": []}, "the references are none; first_integer compares with at least one text"),
        ("jsonl", {"answer": "seven"}, "the reference 'seven': first_integer compares with a number in digits"),
        ("jsonl", {"metric": "contains", "answers": ["7", " "]}, "the references are blank; contains compares"),
        ("jsonl", {"metric": "choice", "answers": ["E"]}, "the reference 'E': choice compares with letters A to D"),
        (
            "jsonl",
            {"metric": "retrieval", "answers": ["3"]},
            "the reference '3': retrieval compares with \"Paragraph N",
        ),
        ("jsonl", {"metric": "classification"}, r"needs meta\['all_classes'\]"),
        ("jsonl", {"metric": "classification", "all_classes": None}, "all_classes=None: classification needs a list"),
        ("jsonl", {"metric": "length_score", "required": 0}, "required=0: length_score needs a whole number"),
        ("jsonl", {"metric": "long_enough", "required": "9"}, "required='9': long_enough needs a whole number"),
        ("jsonl", {"metric": "sgt", "type": "Week", "number": 2, "checks": None}, "checks=None: sgt needs what"),
        ("longbench", {"answers": ["she", {}]}, "the key 'answers' has {} at 1; expected texts"),
        ("hellobench", {"chat_prompt": "no shorter than 0 words"}, "required=0: long_enough needs a whole number"),
        ("sgt", {"number": 0}, "number=0: sgt needs a whole number, at least 1"),
        ("sgt", {"checks_once": {"1": None}}, "'checks_once' has to be an object of section numbers and texts"),
        (
            "longchat",
            {"expected_number": None},
            "the key 'expected_number' is None; expected a text or a list of texts",
        ),
    ],
)
def test_what_would_crash_or_count_as_0_after_an_hour(
    tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    file, record, _, _ = EXAMPLES[name]
    record = {key: value for key, value in record.items() if key != "answer" or "answers" not in change}
    with pytest.raises(ValueError, match=rf"(line|item) 1: .*{message}"):
        list(read(name, write(tmp_path / file, {**record, **change})))


def test_before_a_model_is_there(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "mine.jsonl", *[MINE] * 3, {**MINE, "answers": []})
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 4: the references are none"):
        collect(tokenizer, Grid(tasks=[f"jsonl:{path}"], lengths=[64]), {64: 1})


def test_numbers_are_references_too(tmp_path: Path) -> None:
    (sample,) = read("jsonl", write(tmp_path / "mine.jsonl", {**MINE, "answers": [7, "8"], "id": None}))
    assert (sample.answers, sample.id) == (("7", "8"), "1")
    (free,) = read("jsonl", write(tmp_path / "mine.jsonl", {**MINE, "answers": [], "metric": "judge"}))
    assert free.answers == ()


def test_samples_of_ones_own_are_checked_one_by_one() -> None:
    right = Sample(id="1", task="t", context="", question="", answers=("x",), max_new_tokens=1, metric="contains")
    with pytest.raises(ValueError, match="sample '2' of t: the references are none"):
        check([right, Sample(**{**vars(right), "id": "2", "answers": ()}), right])


def test_a_section_may_have_two_checks(tmp_path: Path) -> None:
    record = EXAMPLES["sgt"][1] | {"checks_periodic": {"1": "a parenting workshop"}}
    (sample,) = read("sgt", write(tmp_path / "Dataset_short.json", record))
    both = "#*# Week 1: a red dress at a parenting workshop. *** finished"
    assert scores([both], [sample])[0] == 1
    assert scores(["#*# Week 1: a parenting workshop"], [sample])[0] == 0.5


def test_a_question_without_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "hotpot.json"
    path.write_text(json.dumps([{"question": "Who?", "answer": None, "context": [["t", ["s"]]]}]))
    with pytest.raises(ValueError, match=r"hotpot\.json, question 1: its answers are \(None,\); expected texts"):
        Questions.of("qa_2", path)


def test_a_task_of_several_metrics_counts_each_sample_by_its_own(tmp_path: Path) -> None:
    rows = [
        {**MINE, "answers": ["the cat sat on it"], "metric": "bleu"},
        {**MINE, "answers": ["a dog ran to him"], "metric": "bleu"},
        {**MINE, "answers": ["7"], "metric": "contains"},
        {**MINE, "answers": ["7"], "metric": "judge"},
    ]
    samples = list(read("jsonl", write(tmp_path / "mine.jsonl", *rows)))
    total, each = scores(["the cat sat on it", "a dog ran to him", "8", "x"], samples)
    assert each == [pytest.approx(1), pytest.approx(1), 0, None]
    assert total == pytest.approx(2 / 3)
