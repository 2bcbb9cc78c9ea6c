"""Long answers: right ones are exact, faulty ones never, and nothing that a model wrote is run."""

from __future__ import annotations

import ast
import builtins
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.evaluation import read, scores
from hf_longctx.evaluation.tasks import long_output
from hf_longctx.evaluation.tasks.long_output import (
    FAULTS,
    Problem,
    Verdict,
    dpo_row,
    eval_sample,
    grpo_row,
    long_tasks,
    make,
    problems,
    reward,
    sft_row,
    split_of,
    spoilt,
    verifier_reward,
    verify,
    write_rows,
)
from hf_longctx.training.packing.jsonl import read_chats

TASKS = tuple(long_tasks())
RIGHT = Verdict(True, 1.0, True)
JUNK = (
    "",
    "\0\0",
    "<",
    "<code>\n" * 500,
    "9" * 100_000,
    "<search>\nSteps:\n__import__('os').abort()=1\n</search>",
    "<code>\n" + "(" * 100_000 + "\n</code>",
    "<code>\n" + "-" * 150 + "1\n</code>",
    "<code>\n" + "(\n" * 5000 + "\n</code>",
    "<list>\n1. " + "a" * 100_000 + "\n</list>",
    "<report>\n" + "\n" * 10_000 + "</report>",
)


def test_there_are_ten_tasks_and_the_report() -> None:
    assert set(TASKS) == {
        *("route", "belief", "table", "edit", "order", "schedule", "ledger", "code", "numbered", "countdown", "report")
    }


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("tokens", [60, 250, 2000])
def test_right_answers_are_exact_and_faulty_ones_never(task: str, tokens: int) -> None:
    for seed in range(6):
        problem = make(task, tokens, seed=seed)
        assert verify(problem, problem.answer) == RIGHT
        assert verify(problem, f"Sure! Here it is:\n\n{problem.answer}\n\nI hope this helps.") == RIGHT
        assert reward(problem, problem.answer, True) == pytest.approx(1.0)
        assert reward(problem, problem.answer, False) == pytest.approx(0.8)
        for fault in FAULTS:
            text, said = spoilt(problem, fault, seed=seed)
            found = verify(problem, text)
            assert said == fault
            assert not found.exact, (fault, text)
            assert found.share < 1
            assert found.frame == (fault != "never ends")
            assert reward(problem, text, True) < 0.7 + 1e-9


@pytest.mark.parametrize("task", TASKS)
def test_the_share_is_that_before_the_first_wrong_line(task: str) -> None:
    """Every line broken in turn, and every line left out: compared with counts that are made here."""
    problem = make(task, 200, seed=3)
    opened, *lines, closed = problem.answer.split("\n")
    slip = long_tasks()[task].slip
    for at in range(len(lines)):
        broken = [*lines[:at], slip(problem, at, random.Random(at)), *lines[at + 1 :]]
        assert verify(problem, "\n".join([opened, *broken, closed])) == Verdict(False, at / len(lines), True), broken[
            at
        ]
        early = verify(problem, "\n".join([opened, *lines[:at], closed]))
        assert early == Verdict(False, at / len(lines), True)
    # without the frame's first line, and without its last one
    assert verify(problem, "\n".join(lines)) == Verdict(False, 1.0, False)
    assert verify(problem, "\n".join([opened, *lines])) == Verdict(False, 1.0, False)


@pytest.mark.parametrize("task", TASKS)
def test_lines_too_many_count_against_a_text(task: str) -> None:
    problem = make(task, 200, seed=4)
    opened, *lines, closed = problem.answer.split("\n")
    n = len(lines)
    loop = verify(problem, "\n".join([opened, *lines, *[lines[-1]] * n, closed]))
    assert loop == Verdict(False, 0.5, True)
    twice = verify(problem, f"{problem.answer}\n{problem.answer}")
    assert twice == Verdict(False, n / (2 * n + 2), True)
    babble = verify(problem, problem.answer + "\nand on" * n)
    assert (babble.exact, babble.share) == ((True, 1.0) if n <= 3 else (False, 0.5))


@pytest.mark.parametrize("task", TASKS)
def test_random_changes_of_a_letter_are_found(task: str) -> None:
    """A deleted or doubled letter or digit somewhere in the frame, where lines have to be equal."""
    problem = make(task, 200, seed=5)
    rng = random.Random(task)
    first, last = problem.answer.index("\n") + 1, problem.answer.rindex("\n")
    for _ in range(60):
        at = rng.randrange(first, last)
        letter = problem.answer[at]
        if not letter.isalnum() or (task in ("numbered", "report") and letter.isalpha()):
            continue  # the words of an open sentence are free
        for text in (
            problem.answer[:at] + problem.answer[at + 1 :],
            problem.answer[:at] + ("x" if letter.isdigit() else "7") + problem.answer[at:],
        ):
            found = verify(problem, text)
            assert not found.exact, text
            assert found.share < 1


@pytest.mark.parametrize("task", TASKS)
def test_junk_scores_next_to_nothing_and_raises_nothing(task: str) -> None:
    problem = make(task, 400, seed=6)
    start = time.perf_counter()
    for junk in (*JUNK, problem.prompt, *(make(other, 300).answer for other in TASKS if other != task)):
        found = verify(problem, junk)
        assert not found.exact
        assert found.share < 0.2
    huge = verify(problem, "<code>\n" * 100_000 + problem.answer * 100)
    assert not huge.exact
    assert time.perf_counter() - start < 10


def test_nothing_that_was_written_is_executed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trap = tmp_path / "run"
    evil = f"open({str(trap)!r}, 'w')"
    answers = {task: make(task, 300, seed=7) for task in TASKS}

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a text was evaluated")

    for name in ("eval", "exec", "__import__"):
        monkeypatch.setattr(builtins, name, never)
    found = []
    for problem in answers.values():
        opened, *lines, closed = problem.answer.split("\n")
        found += [verify(problem, "\n".join([opened, evil, *lines[1:], closed]))]
        found += [verify(problem, "\n".join([opened, *lines[:-1], f"{lines[-1]}; {evil}", closed]))]
    monkeypatch.undo()
    assert not any(one.exact for one in found)
    assert not trap.exists()
    folder = Path(long_output.__file__).parent
    calls = {
        node.func.id
        for file in folder.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("task", TASKS)
def test_seeds_decide_and_the_splits_never_meet(task: str) -> None:
    assert make(task, 300, seed=5) == make(task, 300, seed=5) != make(task, 300, seed=6)
    train = [make(task, 150, seed=seed) for seed in range(60)]
    test = [make(task, 150, seed=seed, split="test") for seed in range(60)]
    assert {split_of(problem) for problem in train} == {"train"}
    assert {split_of(problem) for problem in test} == {"test"}
    assert len({problem.prompt for problem in train}) == len({problem.prompt for problem in test}) == 60


@pytest.mark.parametrize("task", TASKS)
def test_problems_and_long_ones_survive_json(task: str) -> None:
    problem = make(task, 32_768, seed=1)
    again = Problem.from_dict(json.loads(json.dumps(problem.to_dict())))
    assert verify(again, problem.answer) == RIGHT


@pytest.mark.real_model
def test_lengths_are_those_of_smollm2s_tokenizer() -> None:
    from transformers import AutoTokenizer

    from hf_longctx.hub import locate

    try:
        tokenizer = AutoTokenizer.from_pretrained(locate("smollm2-135m-instruct").location)
    except OSError as error:
        pytest.skip(f"the tokenizer cannot be had: {error}")
    for task in TASKS:
        for tokens in (250, 2000, 32_768):
            texts = [make(task, tokens, seed=seed).answer for seed in range(8 if tokens < 32_768 else 2)]
            found = sum(len(tokenizer(text, verbose=False)["input_ids"]) for text in texts) / len(texts)
            assert found == pytest.approx(tokens, rel=0.22), (task, tokens)


def test_answers_are_what_the_prompts_ask_for() -> None:
    """Each answer found from its prompt by other means than the generator's."""
    route = make("route", 400, seed=2)
    ways = dict(re.findall(r"From (.+?) the only way on is a (\w+ to .+?)\.", route.prompt))
    place, last = re.findall(r"journey from (.+?) to (.+?),", route.prompt)[0]
    for line in route.lines:
        by, place_after = ways[place].split(" to ")
        assert line == f"{place} > {by} > {place_after}"
        place = place_after
    assert place == last
    order = make("order", 400, seed=2)
    assert order.lines == sorted(re.findall(r"^\d+ \w+$", order.prompt, re.MULTILINE), key=lambda x: int(x.split()[0]))
    ledger = make("ledger", 400, seed=2)
    balance = int(re.findall(r"Start (\d+)", ledger.prompt)[0])
    moves = re.findall(r"^(\d+)\. (in|out) (\d+)$", ledger.prompt, re.MULTILINE)
    for (i, way, amount), line in zip(moves, ledger.lines, strict=True):
        balance += int(amount) * (1 if way == "in" else -1)
        assert line == f"{i}. {way} {amount}: {balance}"
    schedule = make("schedule", 400, seed=2)
    days = [int(k) for k in re.findall(r": (\d) days$", schedule.prompt, re.MULTILINE)]
    assert schedule.lines[-1].startswith(f"Days {sum(days[:-1]) + 1}-{sum(days)}: ")
    table = make("table", 400, seed=3)
    items = re.findall(r"<h3>(.+?)</h3><i>built (\d+)</i><b>EUR (.+?)</b>", table.prompt)
    since = re.findall(r"built in (\d+) or later", table.prompt)
    kept = [item for item in items if not since or int(item[1]) >= int(since[0])]
    assert table.lines == ["\t".join(item) for item in kept]
    for seed in range(20):
        code = make("code", 500, seed=seed)
        ast.parse("\n".join(code.lines))
        assert len(code.lines) == len(code.given.split("\n"))


def test_beliefs_follow_what_is_seen() -> None:
    for seed in range(5):
        problem = make("belief", 1000, seed=seed)
        who, thing = re.findall(r"where (\w+) is, where the (\w+) is", problem.prompt)[0]
        first, *story = problem.given.split("\n")
        at = dict(re.findall(r"(\w+) is in the (\w+)", first))
        place, belief = at[thing], "unknown"
        for i, line in enumerate(problem.lines[:-1]):
            if i:
                person, verb, to = re.findall(r"(\w+) (goes|carries).* to the (\w+)\.", story[i - 1])[0]
                at[person] = to
                place = to if verb == "carries" else place
            belief = place if at[who] == place else belief
            assert line == f"{i}. {who}: {at[who]}; {thing}: {place}; thinks: {belief}"
        assert problem.lines[-1] == f"Last: {belief}"


def test_other_right_wordings_and_spellings_count() -> None:
    numbered = make("numbered", 200, seed=1)
    lines = [f"{i}. Nobody saw a {word} near door {i} there." for i, word in enumerate(numbered.facts["words"], 1)]
    assert verify(numbered, "\n".join(["<list>", *lines, "</list>"])) == RIGHT
    alike = [f"{i}. Here is {' '.join(set(numbered.facts['words']))}." for i in range(1, len(lines) + 1)]
    assert verify(numbered, "\n".join(["<list>", *alike, "</list>"])).share == 1 / len(lines)
    report = make("report", 200, seed=1)
    lines = [
        f"- One {word} was found in place {i}!" if word else head for i, (head, word) in enumerate(report.facts["rows"])
    ]
    assert verify(report, "\n".join(["<report>", *lines, "</report>"])) == RIGHT
    for seed in range(10):
        code = make("code", 400, seed=seed)
        text = code.answer.replace(" = ", "=").replace("    ", "  ").replace("print(", "print( ")
        assert verify(code, text) == RIGHT
        assert any(line.startswith(" ") for line in code.lines)
        flat = re.sub(r"^ +", "", code.answer, flags=re.MULTILINE)
        assert not verify(code, flat).exact  # a block is more than its lines


def test_steps_of_countdown_may_be_any_that_reach_the_goal() -> None:
    problem = Problem.from_dict(
        make("countdown", 300, seed=0).to_dict() | {"facts": {"numbers": [7, 5, 3, 2], "goal": 17, "search": 1}}
    )
    problem = Problem("countdown", "", "", "<search>\nSteps:\n7+5=12\n12+3=15\n15+2=17\n</search>", problem.facts)
    for steps, right in (
        ("7+5=12\n12+3=15\n15+2=17", 4),
        ("3+2=5\n5+5=10\n10+7=17", 4),
        ("7*2=14\n5-3=2\n14+2=16", 3),  # not the goal
        ("7+5=13\n13+2=15\n15+2=17", 1),  # wrong arithmetic
        ("7+7=14\n14+3=17\n17*1=17", 1),  # a number twice
        ("7+5=12\n7+3=10\n12+2=14", 2),  # one that is used up
        ("7+5=12 \n12+3=15\n15+2=0x11", 3),
        ("7**5=12\n", 1),
        ("٧+5=12\n12+3=15\n15+2=17", 1),
    ):
        found = verify(problem, f"<search>\nSteps:\n{steps}\n</search>")
        assert (found.share, found.exact) == (right / 4, right == 4), steps


def test_rows_are_read_by_our_packing_and_scored_by_the_runner(tmp_path: Path) -> None:
    made = list(problems(TASKS, (60, 300), 22, seed=1))
    assert [problem.task for problem in made] == [*TASKS, *TASKS]
    assert made == list(problems(TASKS, (60, 300), 22, seed=1))
    assert len({len(problem.answer) for problem in made}) > 15
    assert write_rows(tmp_path / "sft.jsonl", map(sft_row, made)) == 22
    chats = list(read_chats(tmp_path / "sft.jsonl"))
    assert [chat["messages"][1]["content"] for chat in chats] == [problem.answer for problem in made]
    pair = dpo_row(made[0], seed=3)
    assert verify(made[0], pair["chosen"][0]["content"]).exact
    assert not verify(made[0], pair["rejected"][0]["content"]).exact
    assert pair["fault"] in FAULTS
    assert {dpo_row(made[0], seed=seed)["fault"] for seed in range(40)} == set(FAULTS)
    write_rows(tmp_path / "eval.jsonl", [eval_sample(p, i, 300).to_dict() for i, p in enumerate(made)])
    samples = list(read("jsonl", tmp_path / "eval.jsonl"))
    assert samples[0].user == made[0].prompt
    assert scores([problem.answer for problem in made], samples)[0] == 1
    assert scores(["no"] * 22, samples)[0] == 0


@pytest.mark.parametrize(
    "change",
    [{"answer": "<list>\n1. No.\n</list>"}, {"facts": {}}, {"facts": {"words": 3}}, {"task": "order"}, {"answer": ""}],
)
def test_files_with_broken_problems_are_refused_before_a_model_runs(change: dict[str, Any], tmp_path: Path) -> None:
    sample = eval_sample(make("numbered", 100), 0, 100).to_dict()
    sample["meta"]["problem"] |= change
    write_rows(tmp_path / "broken.jsonl", [sample])
    with pytest.raises(ValueError, match=r"broken\.jsonl.*eval_sample"):
        list(read("jsonl", tmp_path / "broken.jsonl"))


def test_trl_asks_for_the_reward(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    pytest.importorskip("datasets")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from tests.tiny import tiny, tokenizer

    asked: list[list[float]] = []
    read_reward = verifier_reward(tokenizer().eos_token_id)

    def verifier(**given: Any) -> list[float]:
        asked.append(read_reward(**given))
        return asked[-1]

    rows = [{**grpo_row(problem), "prompt": problem.question} for problem in problems(TASKS, 60, len(TASKS))]
    quiet = {"output_dir": str(tmp_path), "report_to": [], "use_cpu": True, "save_strategy": "no"}
    settings = GRPOConfig(
        **quiet, max_steps=1, num_generations=2, per_device_train_batch_size=2, max_completion_length=4
    )
    GRPOTrainer(
        tiny(), verifier, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer()
    ).train()
    assert [len(group) for group in asked] == [2]
    assert all(0 <= value <= 1 for group in asked for value in group)


def test_the_reward_of_a_group_needs_the_end_token() -> None:
    problem = make("table", 200, seed=1)
    row = json.loads(json.dumps(grpo_row(problem)))
    chat = [{"role": "assistant", "content": problem.answer}]
    bad = spoilt(problem, "one slip")[0]
    found = verifier_reward(2)(
        completions=[problem.answer, chat, problem.answer, bad, ""],
        completion_ids=[[5, 2], [5, 2], [5], [5, 2], []],
        problem=[row["problem"]] * 5,
        trainer_state=None,
    )
    assert found == pytest.approx([1, 1, 0.8, 0.1 + 0.6 * verify(problem, bad).share, 0])
    assert verifier_reward([2, 5])([problem.answer], [[5]], [row["problem"]]) == pytest.approx([1])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: make("rout", 100), "Did you mean 'route'"),
        (lambda: make("route", 59), "tokens=59"),
        (lambda: make("route", 40_000), "60 to 32,768"),
        (lambda: make("route", 100, split="dev"), "train, test"),
        (lambda: list(problems([], 100, 1)), "at least one task"),
        (lambda: list(problems(["route"], (200, 100), 1)), "at least one task"),
        (lambda: list(problems(["route", "tabel"], 100, 1)), "tabel"),
        (lambda: list(problems(["route"], (10, 100), 1)), "60 to 32,768"),
        (lambda: spoilt(make("route", 100), "sleeps"), "stops early"),
        (lambda: verify(Problem("nothing", "", "", "<a>\nb\n</a>"), ""), "nothing"),
        (lambda: Problem.from_dict({"task": "route"}), "Problem.to_dict"),
        (lambda: verifier_reward([]), "eos_token_id"),
        (lambda: verifier_reward(None), "eos_token_id"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_named(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        call()
