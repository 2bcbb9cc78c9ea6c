"""LongProc's rules by hand, and its reader on files in its format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.evaluation import read, score, scores
from hf_longctx.evaluation.longproc import belief, countdown, route, table

ROUTE = "From A, take a bus to B.\nFrom B, take a train to C.\nFrom C, take a ferry to D.\nFrom D, take a bus to E."
BELIEF = "Al's belief:\n- Step 0: {Al location: hall}\n- Step 1: {Al location: den}\n- Step 2: {Al location: hall}"
TABLE = "name\tprice\nThe Lamp\t3\nA Chair\t5\nTable\t7\n"
PROMPTS = {
    "tom_tracking": "{story} {question} {{x}}",
    "html_to_tsv": "{html_str} {task_topic} {task_description} {tsv_header} {filtering_instruction}",
    "countdown": "{demonstration}\nNumbers: {nums}\nTarget: {target}",
}
ITEMS: dict[str, dict[str, Any]] = {
    "tom_tracking": {"story_components": "Agents", "story": "S.", "question": "Where?", "solution": BELIEF},
    "html_to_tsv": {
        "html_path": "./data/html_to_tsv/webpage/W1.html", "gt": TABLE, "task_topic": "Shop", "task_description": "(1)",
        "tsv_header": "name\tprice", "filtering_instruction": "",
    },
    "countdown": {"nums": [21, 16, 17, 26], "target": 46, "solution": [], "demonstration": "<Search Procedure>"},
}  # fmt: skip
RIGHT = {
    "tom_tracking": BELIEF,
    "html_to_tsv": f"```tsv\n{TABLE}```",
    "countdown": "<Solution>\n21 + 16 = 37\n37 - 17 = 20\n26 + 20 = 46\n</Solution>",
}


def folder(tmp_path: Path, task: str, *items: Any) -> Path:
    """A task's folder as the benchmark has it; its 2k file."""
    (tmp_path / "webpage").mkdir(exist_ok=True)
    (tmp_path / "webpage" / "W1.html").write_text("<p>{page}</p>", encoding="utf-8")
    (tmp_path / "prompts.yaml").write_text(json.dumps({"USER_PROMPT": PROMPTS[task]}), encoding="utf-8")
    path = tmp_path / f"{task}_2k.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


@pytest.mark.parametrize("task", ITEMS)
def test_files_are_read_and_their_answers_right(task: str, tmp_path: Path) -> None:
    (sample,) = read("longproc", folder(tmp_path, task, ITEMS[task]))
    assert (sample.task, sample.max_new_tokens, sample.metric) == (f"{task}_2k", 3072, f"longproc_{task}")
    assert scores([RIGHT[task]], [sample])[0] == 1
    for text in ("", "no", "\0", "<Solution>", "```tsv", "- Step 0:", "9" * 10_000):
        assert score(text, sample) == 0
    if task == "tom_tracking":
        assert sample.user == "S. Where? {x}"
    if task == "html_to_tsv":
        assert sample.user.startswith("<p>{page}</p> Shop")
    if task == "countdown":
        assert sample.user.count("# Search Procedure") == 2
        assert sample.user.endswith("Numbers: [21, 16, 17, 26]\nTarget: 46")


def test_a_wrong_first_line_of_a_route_earns_its_share_as_published() -> None:
    def tagged(text: str) -> str:
        return f"So:\n<Route>\n{text}\n</Route>"

    lines = ROUTE.split("\n")
    assert route.whole_route(tagged(ROUTE), ROUTE) == route.begun_route(tagged(ROUTE), ROUTE) == 1
    assert route.begun_route(tagged("no"), ROUTE) == 1 / 4
    assert route.begun_route(tagged("\n".join([*lines[:2], "no", lines[3]])), ROUTE) == 3 / 4
    assert route.begun_route(tagged("\n".join(lines[:2])), ROUTE) == 2 / 4
    assert route.whole_route(tagged(f"{ROUTE}\n{ROUTE}"), ROUTE) == 0
    assert route.begun_route(ROUTE, ROUTE) == route.whole_route(ROUTE, ROUTE) == 0


def test_beliefs_are_compared_without_punctuation_and_frequent_words() -> None:
    assert len(belief.steps(BELIEF)) == 3
    assert belief.all_beliefs(f"- Step 0: let me think\n{BELIEF.upper().replace('- STEP', '- Step')}", BELIEF) == 1
    assert belief.all_beliefs(BELIEF.replace("location: den", "is in the den"), BELIEF) == 1
    wrong = BELIEF.replace("den", "hall")
    assert (belief.all_beliefs(wrong, BELIEF), belief.first_beliefs(wrong, BELIEF)) == (0, 1 / 3)
    assert belief.first_beliefs(BELIEF.rsplit("\n", 1)[0], BELIEF) == 2 / 3
    assert belief.first_beliefs(f"{BELIEF}\n- Step 3: more", BELIEF) == 1  # too many cost nothing, but it is not exact
    assert belief.all_beliefs(f"{BELIEF}\n- Step 3: more", BELIEF) == 0


@pytest.mark.parametrize(
    ("text", "f1"),
    [
        (f"```tsv\n{TABLE}```", 1),
        (TABLE, 1),
        (f"```tsv\n{TABLE}", 1),
        ("item\tcost\ntable\t7\nlamp\t3\nCHAIR!\t5", 1),  # any order and heading; no case, articles, punctuation
        ("n\tp\nLamp\t3", 0.5),  # precision 1, recall 1/3
        ("n\tp\nLamp\t3\nBed\t1", 0.4),  # 1/2 and 1/3
        ("n\tp\nLamp\t3\nThe end.", 0.5),  # a last row of another width is dropped
        ("n\tp\nmore\nLamp\t3", 0.4),  # one before it counts
        ("n\nLamp\nChair", 0),
        ("n\tp", 0),
    ],
)
def test_rows_of_a_table(text: str, f1: float) -> None:
    assert table.row_f1(text, TABLE) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("steps", "right"),
    [
        ("21 + 16 = 37\n37 - 17 = 20\n26 + 20 = 46", 1),
        ("26 - 17 = 9\n21 + 16 = 37\n37+9=46", 1),
        ("21 + 16 = 37\n37 - 17 = 20\n26 - 20 = 6", 0),
        ("21 + 16 = 38\n38 - 17 = 21\n26 + 20 = 46", 0),
        ("21 + 21 = 42\n42 - 17 = 25\n25 + 21 = 46", 0),
        ("21 + 16 = 37\n37 - 17 = 20", 0),
        ("21 + 16 = 37\n37 / 0 = 20\n26 + 20 = 46", 0),
        ("__import__('os').abort() = 37\n37 - 17 = 20\n26 + 20 = 46", 0),
        ("9 ** 9 ** 9 = 37\n37 - 17 = 20\n26 + 20 = 46", 0),
    ],
)
def test_equations_are_parsed(steps: str, right: float) -> None:
    assert countdown.solved(f"<Solution>\n{steps}\n</Solution>", [21, 16, 17, 26], 46) == right


def test_the_search_and_its_share() -> None:
    numbers, target = [3, 2, 8, 5], 8
    lines, steps = countdown.search(numbers, target)
    assert lines[:3] == [
        "Initial number set: [3, 2, 8, 5], target: 8. Options for choosing two numbers: "
        "[(3, 2), (3, 8), (3, 5), (2, 8), (2, 5), (8, 5)].",
        " |- Pick two numbers (3, 2) (numbers left: [8, 5]). Try possible operations.",
        "  |- Try 3 + 2 = 5. Add 5 to the number set. Current number set: [5, 8, 5], target: 8. "
        "Options for choosing two numbers: [(5, 8), (5, 5), (8, 5)].",
    ]
    assert lines[-1].endswith("Evaluate 8 == 8, target found!")
    assert countdown.solved("<Solution>\n" + "\n".join(steps) + "\n</Solution>", numbers, target) == 1

    def share(some: list[str]) -> float:
        return countdown.searched("\n".join([countdown.HEAD, *some]), numbers, target)

    n = len(lines) - 1
    assert share(lines) == (n - 1) / n  # as published: without a solution, the last line is missing
    assert share([*lines[:3], "no", *lines[4:]]) == 2 / n
    assert share(lines[:1]) == share(["no", *lines[1:]]) == 0
    assert countdown.searched("\n".join(lines), numbers, target) == 0  # without its heading
    with pytest.raises(ValueError, match="does not reach"):
        countdown.search([1, 1, 1, 1], 1999)


def test_what_is_refused(tmp_path: Path) -> None:
    for name, said in (
        ("pseudo_to_code_2k.json", "compiles and runs"),
        ("travel_planning_2k.json", "not scored"),
        ("path_traversl_2k.json", "Did you mean 'path_traversal'"),
        ("countdown_4k.json", "0.5k, 2k, 8k"),
    ):
        (tmp_path / name).write_text("[]")
        with pytest.raises(ValueError, match=said):
            list(read("longproc", tmp_path / name))
    for change, said in (
        ({"nums": [1, 2, 3]}, "four whole numbers"),
        ({"nums": [1, 1, 1, 1], "target": 1999}, "does not reach"),
        ({"target": "46"}, "whole number"),
    ):
        with pytest.raises(ValueError, match=rf"item 1: .*{said}"):
            list(read("longproc", folder(tmp_path, "countdown", ITEMS["countdown"] | change)))
    path = folder(tmp_path, "html_to_tsv", ITEMS["html_to_tsv"] | {"html_path": "../../W2.html"})
    with pytest.raises(FileNotFoundError, match=r"W2\.html"):
        list(read("longproc", path))
    with pytest.raises(ValueError, match=r"item 1: .*no answer|item 1: .*lines"):
        list(read("longproc", folder(tmp_path, "tom_tracking", ITEMS["tom_tracking"] | {"solution": "None."})))
    path = folder(tmp_path, "countdown", ITEMS["countdown"])
    for text, said in (
        ("USER_PROMPT: '{story}'", "not the prompt of countdown"),
        ("a: [", "not YAML"),
        ("b", "USER_PROMPT"),
    ):
        (tmp_path / "prompts.yaml").write_text(text)
        with pytest.raises(ValueError, match=said):
            list(read("longproc", path))
    (tmp_path / "prompts.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"prompts\.yaml"):
        list(read("longproc", path))
