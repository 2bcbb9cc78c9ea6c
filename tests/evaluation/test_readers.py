"""Every reader on a small file in the benchmark's own format, and on what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.evaluation import read, scores
from hf_longctx.evaluation.benchmarks.longbench import TASKS
from hf_longctx.evaluation.benchmarks.m4le import TASKS as M4LE
from hf_longctx.evaluation.catalogue import readers
from hf_longctx.evaluation.metrics import metrics

LONGBENCH = {
    "input": "Who?", "context": "She did.", "answers": ["she"], "length": 4100, "dataset": "hotpotqa", "language": "en",
    "all_classes": None, "_id": "a1",
}  # fmt: skip
CHOICE = {
    "_id": "b", "domain": "d", "sub_domain": "s", "difficulty": "hard", "length": "short", "question": " Which? ",
    "choice_A": "a", "choice_B": "b", "choice_C": "c", "choice_D": "d", "answer": "C", "context": " text ",
}  # fmt: skip
LEVAL = {
    "instructions": ["Which one?", "And now?"], "outputs": ["AC", "B"], "input": "Lecture", "source": "x",
    "evaluation": "exam",
}  # fmt: skip
EXAMPLES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    # file, record, what is read, an answer that is right
    "longbench": (
        "hotpotqa.jsonl", LONGBENCH,
        {"task": "hotpotqa", "max_new_tokens": 32, "metric": "qa_f1", "cut": "middle", "chat": True},
        "She.",
    ),
    "longbench2": (
        "data.json", CHOICE, {"task": "longbench2", "max_new_tokens": 128, "answers": ("C",), "context": "text"},
        "The correct answer is (C).",
    ),
    "leval": (
        "coursera.jsonl", LEVAL,
        {"task": "coursera", "metric": "letters_partial", "cut": "document", "context": "Lecture"},
        "A, C",
    ),
    "m4le": (
        "nq-open.jsonl",
        {"instruction": "Read.", "input": "Text", "answers": ["Paris"], "length_bucket": 1000},
        {"task": "nq-open", "metric": "contains", "stop": ("\n", "."), "instruction": "Read.\n", "context": "Text"},
        "in paris. Not Rome",
    ),
    "ruler": (
        "niah_single_1.jsonl",
        {"index": 0, "input": "Text\nWhat is the special magic number for x mentioned?", "outputs": ["123"]},
        {"task": "niah_single_1", "context": "Text", "max_new_tokens": 128, "metric": "string_match_all"},
        "It is 123.",
    ),
    "longchat": (
        "200_lines.jsonl",
        {"random_idx": [4, 2], "expected_number": 24169, "num_lines": 200, "token_size": 1, "correct_line": "x",
         "prompt": "lines\nNow the record is over. Tell me", "prompt_length": 3},
        {"task": "longchat_lines", "context": "lines", "question": "\nNow the record is over. Tell me"},
        "<24169>",
    ),
    "giraffe": (
        "AltQA.json",
        {"conversations": [{"from": "human", "value": "Doc. When?"}, {"from": "gpt", "value": " 1969 "}], "tok_len": 9},
        {"task": "AltQA", "context": "Doc. When?", "metric": "presence"},
        "in 1969",
    ),
    "longwriter": (
        "longbench_write.jsonl", {"prompt": "Write ten words.", "type": "Other", "length": 10},
        {"task": "longbench_write", "max_new_tokens": 32768, "metric": "length_score", "answers": ()},
        "one two three four five six seven eight nine ten",
    ),
    "hellobench": (
        "heuristic_text_generation_2k.jsonl",
        {"id": "h0", "chat_prompt": "Ensure the essay is no shorter than 3 words.", "checklists": ["good?"],
         "category": "essay"},
        {"task": "heuristic_text_generation_2k", "metric": "long_enough", "max_new_tokens": 16384},
        "one two three",
    ),
    "sgt": (
        "Dataset_short.json",
        {"prompt": "Write a diary", "checks_once": {"1": "a red dress"}, "checks_range": {}, "checks_periodic": {},
         "type": "Week", "prefix": "p", "number": 1},
        {"task": "Dataset_short", "metric": "sgt", "max_new_tokens": 16384},
        "#*# Week 1: she wore a red dress. *** finished",
    ),
    "longproc": (
        "path_traversal_0.5k.json",
        {"context_nl": "From A a bus to B.", "question_repr": ["A", "B"], "answer_nl": "From A, take a bus to B."},
        {"task": "path_traversal_0.5k", "max_new_tokens": 1024, "metric": "longproc_path_traversal",
         "context": "From A a bus to B. Find A to B."},
        "It is\n<Route>\nFrom A, take a bus to B.\n</Route>",
    ),
    "jsonl": (
        "mine.jsonl",
        {"task": "mine", "context": "c", "question": "q", "answer": "7", "max_new_tokens": 3, "metric": "first_integer",
         "length": 10, "extra": 1},
        {"id": "1", "task": "mine", "answers": ("7",), "length": 10, "meta": {"extra": 1}},
        "7 or 8",
    ),
}  # fmt: skip


# files that a benchmark has beside its data
BESIDE = {"path_traversal_0.5k.json": {"prompts.yaml": 'USER_PROMPT: "{city_context} Find {src_city} to {dst_city}."'}}


def write(path: Path, *rows: Any) -> Path:
    """JSON lines, or a list where the file is called so."""
    for name, beside in BESIDE.get(path.name, {}).items():
        (path.parent / name).write_text(beside, encoding="utf-8")
    text = json.dumps(list(rows)) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def test_every_reader_has_an_example() -> None:
    assert set(EXAMPLES) == set(readers())


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_file_in_the_official_format_is_read(name: str, tmp_path: Path) -> None:
    file, record, expected, right = EXAMPLES[name]
    first, *_ = found = list(read(name, write(tmp_path / file, record, record)))
    assert len(found) == 2 * (2 if name == "leval" else 1)
    assert {key: getattr(first, key) for key in expected} == expected
    assert first.metric in metrics()
    assert scores([right], [first])[0] == pytest.approx(1)


def test_a_record_of_a_list_is_counted_as_an_item(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([CHOICE, {**CHOICE, "answer": 3}], indent=2))
    with pytest.raises(ValueError, match=r"data\.json, item 2: the key 'answer' is 3; expected a text"):
        list(read("longbench2", path))


def test_a_test_case_of_neither_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1: neither 'expected_number' \(lines\) nor 'topics' is there"):
        list(read("longchat", write(tmp_path / "lines.jsonl", {"prompt": "a"})))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_missing_key_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    file, record, _, _ = EXAMPLES[name]
    # what only some records need is no error
    optional = {"length", "language", "all_classes", "domain", "sub_domain", "difficulty", "source", "evaluation",
                "length_bucket", "index", "token_size", "correct_line", "prompt_length", "num_lines", "random_idx",
                "expected_number", "tok_len", "type", "checklists", "category", "prefix", "extra"}  # fmt: skip
    needed = set(record) - optional | ({"length"} if name == "longwriter" else set())
    needed |= {"type"} if name == "sgt" else set()
    assert needed
    for key in needed:
        path = write(tmp_path / file, record, {k: v for k, v in record.items() if k != key})
        named = {"chat_prompt": "instruction", "answer": "answers" if name == "jsonl" else "answer"}.get(key, key)
        counted = "item" if file.endswith(".json") else "line"
        with pytest.raises(ValueError, match=rf"{file}, {counted} 2: the key '{named}' is missing. There are: "):
            list(read(name, path))


def test_longbench_prompts_and_buckets(tmp_path: Path) -> None:
    assert len(TASKS) == 21
    for prompt, tokens, metric in TASKS.values():
        assert prompt.count("{context}") == 1
        assert 32 <= tokens <= 512
        assert metric in metrics()
    path = tmp_path / "x.jsonl"
    trec = {**LONGBENCH, "dataset": "trec_e", "all_classes": ["A", "B"], "length": 9000, "answers": ["B"]}
    (sample,) = read("longbench", write(path, trec))
    assert (sample.task, sample.chat, sample.stop) == ("trec", False, ("\n",))
    assert sample.meta["groups"] == ["8k+"]
    assert sample.user.endswith("examples of questions.\n\nShe did.\nWho?")
    assert scores(["\nB\nA"], [sample])[0] == 1
    with pytest.raises(ValueError, match="line 1: trec needs 'all_classes'"):
        list(read("longbench", write(path, {**trec, "all_classes": None})))
    with pytest.raises(ValueError, match="dataset 'squad' is none of LongBench's"):
        list(read("longbench", write(path, {**LONGBENCH, "dataset": "squad"})))


def test_formats_in_detail(tmp_path: Path) -> None:
    (choice,) = read("longbench2", write(tmp_path / "data.json", CHOICE))
    with pytest.raises(ValueError, match="item 1: the key 'answer' is 'E'; expected A, B, C or D"):
        list(read("longbench2", write(tmp_path / "e.json", {**CHOICE, "answer": "E"})))
    assert choice.meta["groups"] == ["hard", "short"]
    assert choice.question.startswith(
        "\n</text>\n\nWhat is the correct answer to this question: Which?\nChoices:\n(A) a\n"
    )
    both = list(read("leval", write(tmp_path / "coursera.jsonl", LEVAL)))
    assert [sample.id for sample in both] == ["1-0", "1-1"]
    asked = {"instructions": ["Sum up."], "outputs": ["one two three"], "evaluation": "LLM"}
    (summary,) = read("leval", write(tmp_path / "news_summ.jsonl", {**LEVAL, **asked}))
    assert "We need a 3 words answer." in summary.question
    assert summary.metric == "rouge_overall"
    with pytest.raises(ValueError, match="2 instructions and 1 outputs"):
        list(read("leval", write(tmp_path / "quality.jsonl", {**LEVAL, "outputs": ["A"]})))
    with pytest.raises(ValueError, match="'evaluation' is 'new' of the unknown task"):
        list(read("leval", write(tmp_path / "other.jsonl", {**LEVAL, "evaluation": "new"})))
    assert len(M4LE) == 39  # names in the official evaluation.py
    m4le = {"instruction": "i", "input": "t", "answers": ["3. three"]}
    (count,) = read("m4le", write(tmp_path / "mnds-news_semantic-multiple_cls+cnt.jsonl", m4le))
    assert count.answers == ("3",)
    with pytest.raises(ValueError, match="no data set of M4LE is called 'mine'"):
        list(read("m4le", write(tmp_path / "mine.jsonl", m4le)))
    folder = tmp_path / "qa_1"
    folder.mkdir()
    row = {
        "input": "A\n\nAnswer the question based on it.\n\nQuestion: Who?",
        "outputs": ["x"],
        "answer_prefix": " Answer:",
    }
    (qa,) = read("ruler", write(folder / "validation.jsonl", row))
    assert (qa.task, qa.context, qa.metric, qa.answer_prefix) == ("qa_1", "A", "string_match_part", " Answer:")
    with pytest.raises(ValueError, match="'mine' is no task of RULER's"):
        list(read("ruler", write(tmp_path / "mine.jsonl", row)))
    topics = {"test_id": 3, "prompt": "Chat", "topics": ["the sea", "the sky"]}
    (first,) = read("longchat", write(tmp_path / "topics.jsonl", topics))
    assert first.answers == ("the sea",)
    (line,) = read("giraffe", write(tmp_path / "lines.json", EXAMPLES["longchat"][1]))
    assert (line.task, line.metric) == ("giraffe_lines", "first_integer")
    with pytest.raises(ValueError, match="a prompt and an answer"):
        list(read("giraffe", write(tmp_path / "alt.json", {"conversations": [{"value": "x"}]})))
    (free,) = read("hellobench", write(tmp_path / "chat.jsonl", {"id": 1, "instruction": "Talk."}))
    assert free.metric == "judge"
    with pytest.raises(ValueError, match="'length' is 'ten'; expected a whole number"):
        list(read("longwriter", write(tmp_path / "w.jsonl", {"prompt": "x", "length": "ten"})))
    with pytest.raises(ValueError, match="'checks_once' has to be an object"):
        list(read("sgt", write(tmp_path / "s.json", {**EXAMPLES["sgt"][1], "checks_once": {"a": "b"}})))


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for data, message in [
        (b"\0\1\2", "zero bytes"),
        ("{'ä'}".encode("latin1"), "is not UTF-8: byte 2 is 0xe4"),
        (b'{"a": 1}\n{"a": \n', "line 2: not JSON"),
        (b"3\n", "line 1: expected a JSON object, found '3'"),
        (b"", "is empty. Give a file with samples"),
        (b'[{"a": 1},\n', "line 2: not JSON"),
        (b"[1]", "item 1: expected a JSON object"),
    ]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            list(read("jsonl", path))
    with pytest.raises(FileNotFoundError, match=r"No text file at .*y\.jsonl"):
        list(read("jsonl", tmp_path / "y.jsonl"))
    with pytest.raises(ValueError, match="no such reader"):
        list(read("long", path))
    with pytest.raises(ValueError, match=r"line 1: max_new_tokens=0: expected at least 1"):
        list(read("jsonl", write(path, {**EXAMPLES["jsonl"][1], "max_new_tokens": 0})))
    # a line's end inside a text is none
    (sample,) = read("jsonl", write(path, {**EXAMPLES["jsonl"][1], "context": "a\u2028b\u0085c"}))
    assert sample.context == "a\u2028b\u0085c"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "nope"}, "line 1: metric 'nope': no such metric"),
        ({"context": 5}, "line 1: context=5: expected a"),
        ({"length": "long"}, "line 1: length='long': expected a whole number"),
        ({"depth": "end"}, "line 1: depth='end': expected a number from 0 to 1"),
        ({"depth": 1.5}, "line 1: depth=1.5: expected a number from 0 to 1"),
        ({"max_new_tokens": "8"}, "line 1: max_new_tokens='8': expected a whole number"),
        ({"max_new_tokens": True}, "line 1: max_new_tokens=True: expected a whole number"),
        ({"answers": None}, "line 1: answers=None: expected a string or a list of strings"),
        ({"stop": "x"}, "line 1: stop='x': expected a list of strings"),
        ({"chat": "no"}, "line 1: chat='no': expected true or false"),
        ({"meta": "x"}, "line 1: meta='x': expected an object"),
    ],
)
def test_our_own_schema_names_the_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    sample = {"task": "t", "context": "a", "question": "q", "answers": ["7"], "max_new_tokens": 8}
    with pytest.raises(ValueError, match=message):
        list(read("jsonl", write(tmp_path / "mine.jsonl", {**sample, "metric": "first_integer", **change})))
