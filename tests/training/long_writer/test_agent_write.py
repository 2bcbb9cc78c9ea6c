"""The command of AgentWrite at a stub endpoint: texts, kept replies, interruptions, and endpoints that do not work."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.console import Progress
from hf_longctx.training.packing import read_chats
from recipes.long_writer import agent_write, agent_write_model
from recipes.long_writer.data import asked as asked_rows
from recipes.long_writer.replies import LeftOut

from .stub import PLAN, Answer, Stub, completion, endpoint, paragraph, well

pytest.importorskip("openai")


@pytest.fixture
def stub() -> Iterator[Stub]:
    with endpoint() as found:
        yield found


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "asked.txt"
    path.write_text("Tell of a storm in 500 words.\n\nTell of a flood in 1,000 words.\nTell of a storm in 500 words.\n")
    return path


def command(stub: Stub, asked: Path, *more: str) -> int:
    out = asked.with_name("chats.jsonl")
    words = ["--instructions", str(asked), "--endpoint", stub.url, "--out", str(out), "--retries", "1", *more]
    return agent_write.main(words)


def chats(asked: Path) -> list[dict[str, Any]]:
    return list(read_chats(asked.with_name("chats.jsonl")))


def test_texts_are_planned_and_written(stub: Stub, asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(stub, asked) == 0
    found = chats(asked)
    assert [row["messages"][0]["content"] for row in found] == [
        "Tell of a storm in 500 words.",
        "Tell of a flood in 1,000 words.",
    ]
    assert [row["messages"][1]["content"].split("\n\n") for row in found] == [
        [" ".join(["tale"] * n), " ".join(["end"] * n)] for n in (250, 500)
    ]
    assert [(row["words"], row["written"]) for row in found] == [(500, 500), (1000, 1000)]
    assert len(stub.requests) == 6, "the same instruction is taken once"
    assert all(request["model"] == "stub" and request["temperature"] == 1 for request in stub.requests)
    assert any(
        prompt.endswith("repeat nothing of the text so far.") and "tale tale" in prompt for prompt in stub.prompts()
    )
    assert "Wrote 2 of 2 texts" in capsys.readouterr().out
    assert stub.keys == {"Bearer none"}
    assert command(stub, asked) == 0
    assert len(stub.requests) == 6, "no request is made twice"


def test_a_jsonl_gives_lengths_and_may_have_halves_of_characters(stub: Stub, tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text('{"prompt": "Tell of Rome.\\ud800", "length": 400}\n{"prompt": "Tell of Athens."}\n')
    stub.says = lambda prompt, request: well(prompt, request) + ("\ud83d" if "Now write" in prompt else "")  # type: ignore[operator]
    assert command(stub, path, "--model", "mine") == 0
    assert [row["words"] for row in chats(path)] == [400, None]
    assert [row["written"] for row in chats(path)] == [400, 500]
    # trainings read the words asked for, of the texts that have them
    assert [row["words"] for _, row in asked_rows([str(path.with_name("chats.jsonl"))])] == [400]
    assert stub.requests[0]["model"] == "mine"


def test_what_was_interrupted_goes_on(stub: Stub, asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The endpoint is down after every second reply; in the end there is what an uninterrupted run writes."""
    assert command(stub, asked) == 0
    right, whole = asked.with_name("chats.jsonl").read_bytes(), stub.prompts()
    for path in asked.parent.glob("chats*"):
        path.unlink()
    stub.requests.clear()
    answered: list[str] = []

    def failing(prompt: str, request: dict[str, Any]) -> Answer:
        if len(answered) % 3 == 2:
            return 503, {"error": {"message": "loading the model"}}
        answered.append(prompt)
        return well(prompt, request)

    stub.says = failing
    for _ in range(6):
        ended = command(stub, asked, "--workers", "1")
        answered.append("")  # it is up again
        if ended == 0:
            break
        assert ended == 2
        assert not asked.with_name("chats.jsonl").exists()
        said = capsys.readouterr().err
        assert "answered with status 503" in said
        assert "loading the model" in said
        assert "the same command goes on" in said
    assert asked.with_name("chats.jsonl").read_bytes() == right
    assert sorted(prompt for prompt in answered if prompt) == sorted(whole), "each was answered once"


KILLED = """
import sys
from tests.training.long_writer import stub
from recipes.long_writer import agent_write
with stub.endpoint() as one:
    def says(prompt, request):
        if len(one.requests) > int(sys.argv[2]):
            import os
            os._exit(9)  # as by kill -9, in the middle of a request
        return stub.well(prompt, request)
    one.says = says
    agent_write.main(["--instructions", sys.argv[1], "--endpoint", one.url, "--out", sys.argv[3], "--workers", "1"])
"""


def test_what_was_killed_goes_on(stub: Stub, asked: Path) -> None:
    out = asked.with_name("chats.jsonl")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(asked), "4", str(out)], check=False)
    assert ended.returncode == 9
    assert not out.exists()
    kept = out.with_name("chats.jsonl.replies.jsonl")
    kept.write_bytes(kept.read_bytes() + b'{"key": ["ab')  # a line that was not written to its end
    assert command(stub, asked) == 0
    assert len(stub.requests) == 2, "4 of 6 were kept"
    assert [row["written"] for row in chats(asked)] == [500, 1000]


def test_ctrl_c_keeps_the_replies(
    stub: Stub, asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(self: Any, n: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", pressed)
        assert command(stub, asked, "--workers", "1") == 130
    assert "Interrupted. The replies so far are in" in capsys.readouterr().err
    assert not asked.with_name("chats.jsonl").exists()
    assert command(stub, asked) == 0
    assert len(stub.requests) == 6, "none was made twice"


def test_a_plan_that_is_none_is_asked_for_again(stub: Stub, asked: Path) -> None:
    junk = iter(["", "Shall it rhyme?", "1. A storm (9 words)"])
    stub.says = lambda prompt, request: well(prompt, request) if "Now write" in prompt else next(junk, PLAN)
    assert command(stub, asked, "--workers", "1", "--tries", "4") == 0
    plans = [request["messages"] for request in stub.requests if "Now write" not in str(request["messages"])]
    assert [messages[-1]["content"][:60] for messages in plans[1:4]] == [
        "This cannot be used: no line begins with the number of a par",
        "This cannot be used: no line begins with the number of a par",
        "This cannot be used: its paragraphs have 9 words together, a",
    ]
    assert [message["content"] for message in plans[1][1:2] + plans[2][1:2]] == ["(nothing)", "Shall it rhyme?"]
    assert [row["written"] for row in chats(asked)] == [500, 1000]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("", "no usable paragraph 1 in 3 tries; the last: it is empty"),
        ((200, completion(None)), "it is empty"),
        ((200, completion("cut " * 300, "length")), "it did not end after 300 words"),
        ("word " * 400_000, "it did not end after 40000 words"),
        ((400, {"error": {"message": "longer than the context"}}), "status 400: .*longer than the context"),
    ],
    ids=["empty", "null", "cut", "huge", "refused"],
)
def test_a_text_that_cannot_be_written_is_named_and_left_out(
    bad: Answer, why: str, stub: Stub, asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.says = lambda prompt, request: (
        bad
        if "flood" in prompt and "Now write" in prompt
        else (bad if "cannot be used" in prompt else well(prompt, request))
    )
    assert command(stub, asked) == 0
    assert len(chats(asked)) == 1
    said = capsys.readouterr()
    assert "Wrote 1 of 2 texts" in said.out
    assert "asked.txt, line 3: left out: " in said.err
    assert re.search(why, said.err)
    assert asked.with_name("chats.jsonl.replies.jsonl").stat().st_size < 1_000_000


def test_no_file_where_no_text_could_be_written(stub: Stub, asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.says = lambda prompt, request: "no"
    assert command(stub, asked) == 1
    assert not asked.with_name("chats.jsonl").exists()
    assert "line 1: left out: no usable plan in 3 tries" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "cannot be reached"),
        ((500, {"error": {"message": "out of memory"}}), "status 500.*out of memory"),
        ((401, {"error": {"message": "no such key"}}), "status 401.*no such key"),
        ((404, {"detail": "Not Found"}), "status 404"),
        ((200, "<html>Welcome</html>"), "something that is no"),
        ((200, {"choices": []}), "no chat completion"),
    ],
    ids=["closed", "500", "401", "404", "a page", "no choices"],
)
def test_an_endpoint_that_does_not_work_is_said(
    answer: Answer, why: str, stub: Stub, asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.says = lambda prompt, request: answer
    assert command(stub, asked) == 2
    said = capsys.readouterr().err
    assert re.search(why, said)
    assert stub.url in said
    assert "Traceback" not in said
    assert not asked.with_name("chats.jsonl").exists()


def test_an_endpoint_that_is_slow_is_said(stub: Stub, asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waiting = threading.Event()
    stub.says = lambda prompt, request: "late" if waiting.wait(20) else None
    try:
        assert command(stub, asked, "--timeout", "0.05", "--retries", "0", "--workers", "1") == 2
    finally:
        waiting.set()
    assert "no answer in 0.05 seconds, 1 times" in capsys.readouterr().err


def test_what_is_refused(stub: Stub, asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        assert agent_write.main([*words]) == 2
        return capsys.readouterr().err

    out, place = ("--out", str(tmp_path / "o.jsonl")), ("--endpoint", stub.url)
    assert "Give --endpoint URL or --model DIR" in said("--instructions", str(asked), *out)
    given = ("--instructions", str(asked))
    assert "expected an address up to /v1" in said(*given, *out, "--endpoint", "localhost:8000")
    assert "expected an address up to /v1" in said(*given, *out, "--endpoint", f"{stub.url}/chat/completions")
    assert "exists, and is not of this command" in said(*given, *place, "--out", str(asked))
    assert "--tries" in said(*given, *out, *place, "--tries", "0")
    stub.models = ["a", "b"]
    assert "serves a, b: name one with --model" in said(*given, *out, *place)
    stub.models = ["stub"]
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert "is empty" in said("--instructions", str(empty), *out, *place)
    empty.write_text("[]")
    assert "no instructions" in said("--instructions", str(empty), *out, *place)
    empty.write_text('{"prompt": "x", "length": 0}\n')
    assert "line 1: expected a 'prompt'" in said("--instructions", str(empty), *out, *place)
    assert "nowhere.txt" in said("--instructions", str(tmp_path / "nowhere.txt"), *out, *place)
    with pytest.raises(SystemExit, match="2"):
        agent_write.main([*given, *place, "--out", str(asked / "o.jsonl")])
    assert f"--out: {str(asked)!r} is a file" in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl.replies.jsonl").exists()
    assert not stub.requests
    assert command(stub, asked) == 0
    assert "temperature was 1.0 and is 0.5" in said(
        *given, *place, "--out", str(tmp_path / "chats.jsonl"), "--temperature", "0.5"
    )


def test_out_may_be_in_a_new_folder(stub: Stub, asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "new/er/chats.jsonl"
    assert agent_write.main(["--instructions", str(asked), "--endpoint", stub.url, "--out", str(out)]) == 0
    assert len(list(read_chats(out))) == 2
    down = tmp_path / "down/chats.jsonl"
    given = ["--instructions", str(asked), "--out", str(down), "--retries", "0"]
    assert agent_write.main([*given, "--endpoint", "http://127.0.0.1:9/v1"]) == 2
    assert not down.parent.exists(), "nothing was kept in it"


def test_a_text_beyond_every_plan_is_left_out(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "asked.txt"
    path.write_text("A novel of 90,000 words.")
    assert command(stub, path) == 1
    assert "90000 words are asked for, and a plan has at most 50000" in capsys.readouterr().err
    assert not stub.requests


def test_a_local_model_replies_the_same_for_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model writes noise: it is no planner, but it is asked, seeded, ended and kept inside its context."""
    import torch

    from tests.tiny import tiny, tokenizer

    words = tokenizer()
    words.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    model = tiny()
    monkeypatch.setattr("hf_longctx.hub.load", lambda name: (model, words))
    local = agent_write_model.LocalModel("tiny", temperature=1.0)
    chat = [{"role": "user", "content": "w3 w4 w5"}]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    replies = [local(chat, 40, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert replies[0] == replies[1] != replies[2]
    assert not replies[0].ended, "the model has no end token"
    local.ends = words("w" + replies[0].text.split("w")[9]).input_ids[-1:]
    ended = local(chat, 40, 0)
    assert ended.ended
    assert replies[0].text.startswith(ended.text)
    assert len(ended.text) < len(replies[0].text)
    with pytest.raises(LeftOut, match="512 positions have no room"):
        local([{"role": "user", "content": "w3 " * 500}], 60, 0)
    words.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        agent_write_model.LocalModel("tiny")


def test_a_model_on_this_machine_by_the_command(
    asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tiny model has no room for a plan, which is said for each text; its replies are never mixed with another's."""
    from tests.tiny import tiny, tokenizer

    words = tokenizer()
    words.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    monkeypatch.setattr("hf_longctx.hub.load", lambda name: (tiny(seed=int(name)), words))
    given = ("--instructions", str(asked), "--out", str(asked.with_name("chats.jsonl")), "--model")
    assert agent_write.main([*given, "0"]) == 1
    assert "asked.txt, line 3: left out: after a request of" in capsys.readouterr().err
    assert agent_write.main([*given, "1"]) == 2
    assert "holds cells of another run: weights was" in capsys.readouterr().err


def test_a_paragraph_of_the_stub_is_as_long_as_asked() -> None:
    assert paragraph("Now write paragraph 2 of 2: x. Write about 3 words.") == "end end end"
    assert json.loads(json.dumps(completion("x")))["choices"][0]["finish_reason"] == "stop"
