"""A judge at a stub endpoint: marks, kept replies, replies without marks, an endpoint that is down, wrong files."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.evaluation.judge import DIMENSIONS
from recipes.long_writer.judge import main
from tests.training.long_writer.stub import Stub, endpoint

pytest.importorskip("openai")
MARKS = dict.fromkeys(DIMENSIONS, 4)


def marks(prompt: str, request: dict[str, Any]) -> str:
    """4 everywhere, and 2 of relevance for texts with "off" in them."""
    return json.dumps(MARKS | ({"relevance": 2} if "<text>\noff" in request["messages"][0]["content"] else {}))


@pytest.fixture
def stub() -> Iterator[Stub]:
    with endpoint() as made:
        made.says = marks
        yield made


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    file = tmp_path / "answers.jsonl"
    rows = [("A poem.", "on and on", "plain"), ("A letter.", "off and off", "plain"), ("An essay.", "", "counted")]
    lines = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": text}], "form": form}
        for asked, text, form in rows
    ]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


def judge(stub: Stub, answers: Path, out: Path, *more: str) -> list[Any]:
    main(["--answers", str(answers), "--endpoint", stub.url, "--out", str(out), "--retries", "1", *more])
    return [json.loads(line) for line in out.read_text().splitlines()]


def failed(capsys: pytest.CaptureFixture[str], *given: Any) -> str:
    with pytest.raises(SystemExit) as ended:
        judge(*given)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_texts_are_marked_and_no_request_is_made_twice(
    stub: Stub, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "marks.jsonl"
    rows = judge(stub, answers, out)
    assert [row["configuration"] for row in rows] == ["plain", "plain", "counted"]
    assert [row["name"] for row in rows] == ["line 1", "line 2", "line 3"]
    assert rows[0]["marks"] == MARKS
    assert [row["quality"] for row in rows] == pytest.approx([0.75, (22 / 6 - 1) / 4, 0])
    said = capsys.readouterr().out
    assert "plain: S_q 70.8 of 2 texts" in said
    assert "relevance 3.00, accuracy 4.00" in said
    # an empty text is marked without a request
    assert len(stub.requests) == 2
    assert all(request["temperature"] == 0 and request["model"] == "stub" for request in stub.requests)
    assert "<request>\nA poem.\n</request>" in " ".join(stub.prompts())
    assert judge(stub, answers, out) == rows
    assert len(stub.requests) == 2


def test_a_reply_without_marks_is_asked_for_again_and_then_named(
    stub: Stub, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stubborn(prompt: str, request: dict[str, Any]) -> Any:
        if "on and on" in request["messages"][0]["content"]:
            return json.dumps(MARKS | {"clarity": 9})
        return json.dumps(MARKS) if len(request["messages"]) > 1 else "It is good."

    stub.says = stubborn
    rows = judge(stub, answers, tmp_path / "marks.jsonl")
    assert rows[0]["marks"] is rows[0]["quality"] is None
    assert "no usable marks in 3 tries; the last: clarity is 9" in rows[0]["why"]
    assert rows[1]["marks"] == MARKS
    assert "plain: 1 texts have no marks, and are in no mean" in capsys.readouterr().out
    (again,) = [one for one in stub.prompts() if "no JSON objects" in one]
    assert again.startswith("This cannot be used")


def test_an_endpoint_that_fails_loses_nothing(
    stub: Stub, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "marks.jsonl"
    stub.says = lambda prompt, request: marks(prompt, request) if len(stub.requests) == 1 else (500, "broken")
    said = failed(capsys, stub, answers, out, "--workers", "1")
    assert "answered with status 500" in said
    assert "the same command continues from them" in said
    assert not out.exists()
    before, stub.says = len(stub.requests), marks
    assert len(judge(stub, answers, out)) == 3
    assert len(stub.requests) == before + 1


def test_a_text_that_the_judge_refuses_is_named(stub: Stub, answers: Path, tmp_path: Path) -> None:
    stub.says = lambda prompt, request: (400, {"error": {"message": "context of 8 tokens"}})
    rows = judge(stub, answers, tmp_path / "marks.jsonl")
    assert "status 400" in rows[0]["why"]
    assert rows[2]["marks"] == dict.fromkeys(DIMENSIONS, 1)


def test_an_endpoint_that_is_down(answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        down = Stub()
        down.url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        assert "cannot be reached" in failed(capsys, down, answers, tmp_path / "marks.jsonl", "--retries", "0")
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]


def test_predictions_of_an_evaluation_are_judged_with_their_prompts(stub: Stub, tmp_path: Path) -> None:
    prompts = tmp_path / "longbench_write.jsonl"
    prompts.write_text('{"prompt": "A tale.", "length": 500}\n{"prompt": "A report.", "length": 900}\n')
    predictions = tmp_path / "predictions.jsonl"
    line = {"configuration": "stock", "task": "longbench_write", "answers": [], "metric": "length_score"}
    lines = [line | {"id": "2", "prediction": "Once."}, line | {"id": "1", "prediction": "off", "configuration": "own"}]
    predictions.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    rows = judge(stub, predictions, tmp_path / "marks.jsonl", "--prompts", str(prompts))
    assert [(row["configuration"], row["quality"]) for row in rows] == [("stock", 0.75), ("own", pytest.approx(2 / 3))]
    asked = sorted(prompt.partition("<request>\n")[2][:9] for prompt in stub.prompts())
    assert asked == ["A report.", "A tale.\n<"]


def test_a_file_of_something_else_is_not_written_over(
    stub: Stub, answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = answers.read_bytes()
    assert "exists, and is not of this command" in failed(capsys, stub, answers, answers)
    assert answers.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("", (), "is empty"),
        ("[]", (), "there is no text to judge"),
        ("no json", (), "not JSON"),
        ('{"prompt": "A poem."}', (), "line 1 has no messages"),
        ('{"messages": [{"role": "user", "content": "A poem."}]}', (), "no message of the role 'assistant'"),
        ('{"id": "1", "prediction": "Once."}', (), "no prompt for the prediction of sample '1'. Give --prompts"),
        ('{"id": "1", "prediction": 5}', (), "no prompt|expected a text"),
        ('{"id": "1", "prediction": "Once."}', ("--prompts", "nowhere"), "No text file at"),
        ("{}", ("--tries", "0"), "expected --tries and --workers of at least 1"),
    ],
)
def test_files_and_options_that_are_wrong(
    text: str, more: tuple[str, ...], said: str, stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    file = tmp_path / "answers.jsonl"
    file.write_text(text)
    assert re.search(said, failed(capsys, stub, file, tmp_path / "marks.jsonl", *more))
    assert [one.name for one in tmp_path.iterdir()] == ["answers.jsonl"]
    assert stub.requests == []
