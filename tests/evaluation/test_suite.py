"""Suites on a tiny model: batches, configurations, resuming, files, procedures."""

from __future__ import annotations

import io
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from hf_longctx.evaluation import prompts, suite
from hf_longctx.evaluation.answer import answer, batches
from hf_longctx.evaluation.runner import evaluate
from tests.evaluation.conftest import Louder

TASKS: dict[str, Any] = {
    "task": ["passkey", "lines"], "lengths": [700, 800], "samples": 2, "window": 750, "batch_tokens": 1700,
}  # fmt: skip


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=160)


@pytest.fixture(autouse=True)
def _short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "load_text", lambda name: "A short text. It has sentences. " * 20)


def same(results: dict[str, Any]) -> list[Any]:
    """Rows without what no two runs share."""
    rows = json.loads(json.dumps(results["rows"]))
    for line in rows:
        line["detail"].pop("seconds", None)
    return rows


def test_batches_share_a_length() -> None:
    lengths = [10] * 5 + [20] * 6 + [15, 11]
    found = list(batches(lengths, 60))
    assert sorted(i for batch in found for i in batch) == list(range(13))
    assert [[lengths[i] for i in batch] for batch in found] == [[20] * 3, [20] * 3, [10] * 5, [15, 11]]
    assert [len(batch) for batch in batches([10] * 5, 60, 4)] == [2, 3]
    assert [len(batch) for batch in batches([10] * 2, 1)] == [1, 1]
    assert list(batches([], 10)) == []


def test_a_padded_batch_answers_as_its_rows_alone(llama: Any, tokenizer: Any) -> None:
    prompts = [list(range(65, 65 + n)) for n in (20, 33, 33)]
    alone = [answer(llama, tokenizer, [prompt], 6)[0] for prompt in prompts]
    assert answer(llama, tokenizer, prompts, 6) == alone
    assert answer(llama, tokenizer, prompts[1:], 6, prefill_tokens=16) == alone[1:]


def test_stock_truncated_and_method(llama: Any, tokenizer: Any, tmp_path: Path, console: Console) -> None:
    method, before = Louder(), llama.lm_head.weight.clone()
    found = evaluate(llama, tokenizer, method=method, out=tmp_path, console=console, **TASKS)
    assert torch.equal(llama.lm_head.weight, before)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(found))
    assert found["settings"]["configurations"] == ["stock", "last 750 tokens", "Louder"]
    places = [(line["detail"]["task"], line["detail"]["length"]) for line in found["rows"][:4]]
    assert places == [("passkey", 700), ("passkey", 800), ("lines", 700), ("lines", 800)]
    first = found["rows"][0]
    assert first["unit"] == "points of 100"
    assert first["detail"]["samples"] == {"stock": 2, "last 750 tokens": 2, "Louder": 2}
    assert [line["detail"].get("at_length") for line in found["rows"][4:6]] == [700, 800]
    # 85 % of nothing would be reached everywhere, so there is no such row
    assert [line["what"][:26] for line in found["rows"][6:]] == ["effective length, average "]
    # within the window truncation is the stock model, measured once
    keys = [json.loads(line)["key"] for line in (tmp_path / "cells.jsonl").read_text().splitlines()[1:]]
    assert sorted(map(str, keys)) == sorted(
        str([kind, task, length, None, keep])
        for kind, length, keep in [("stock", 700, None), ("stock", 800, None), ("stock", 800, 750),
                                   ("method", 700, None), ("method", 800, None)]
        for task in ("passkey", "lines")
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * 4 * 2
    assert {"configuration", "task", "id", "prediction", "answers", "score"} <= lines[0].keys()
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert "Passkey retrieval" in shown
    assert "Louder" in shown


def test_a_perfect_reader_has_full_marks_where_it_sees_the_answer(
    llama: Any, tokenizer: Any, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def oracle(model: Any, tokenizer_: Any, prompts: Any, budget: int, **_: Any) -> list[str]:
        texts = [tokenizer.decode(ids.tolist()) for ids in prompts]
        return [text.partition("Remember it. ")[2].partition(" is the pass key")[0] for text in texts]

    monkeypatch.setattr(prompts, "answer", oracle)
    found = evaluate(
        llama, tokenizer, task=["passkey"], lengths=[900, 3000], depths=[0.0, 1.0], samples=2, window=900, out=tmp_path,
        console=console,
    )  # fmt: skip
    cells = {
        (line["detail"]["length"], line["detail"]["depth"]): line for line in found["rows"] if "depth" in line["detail"]
    }
    assert {at: line["beside"]["stock"] for at, line in cells.items()} == dict.fromkeys(cells, 100)
    assert {at: line["value"] for at, line in cells.items()} == {
        (900, 0): 100, (900, 1): 100, (3000, 0): 0, (3000, 1): 100
    }  # fmt: skip
    absolute, relative = found["rows"][-2:]
    assert (absolute["value"], absolute["beside"]["stock"]) == (900, 3000)
    assert (relative["value"], relative["detail"]["own"], relative["detail"]["own_length"]) == (900, 100, 900)


def test_an_interrupted_run_resumes_with_the_same_result(
    llama: Any, tokenizer: Any, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(llama, tokenizer, method=Louder(), out=tmp_path / "whole", console=console, **TASKS)
    asked: list[int] = []

    def watched(model: Any, tokenizer_: Any, prompts: Any, budget: int, **more: Any) -> list[str]:
        if len(asked) == stop_after:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return answer(model, tokenizer_, prompts, budget, **more)

    monkeypatch.setattr(prompts, "answer", watched)
    stop_after = 3
    for _ in range(2):
        asked.clear()
        with pytest.raises(KeyboardInterrupt):
            evaluate(llama, tokenizer, method=Louder(), out=tmp_path / "part", console=console, **TASKS)
        assert not (tmp_path / "part" / "results.json").exists()
    stop_after = -1
    asked.clear()
    resumed = evaluate(llama, tokenizer, method=Louder(), out=tmp_path / "part", console=console, **TASKS)
    assert 0 < sum(asked) < 5 * 2 * 2
    assert same(resumed) == same(whole)
    with pytest.raises(ValueError, match="holds cells of another run: seed was 0 and is 1"):
        evaluate(llama, tokenizer, method=Louder(), out=tmp_path / "part", console=console, seed=1, **TASKS)
    # where only the samples differ, why they do
    with pytest.raises(
        ValueError, match=r"another run: lengths was \[700, 800\] and is \[700\], n was 2 and is 1, sam"
    ):
        evaluate(llama, tokenizer, out=tmp_path / "part", method=Louder(), console=console,
                       **{**TASKS, "lengths": [700], "samples": 1})  # fmt: skip


def test_a_batch_that_does_not_fit_is_halved_and_a_prompt_that_does_not_is_reported(
    llama: Any, tokenizer: Any, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def scarce(model: Any, tokenizer_: Any, prompts: Any, budget: int, **_: Any) -> list[str]:
        sizes.append(len(prompts))
        if len(prompts) > 1 or len(prompts[0]) > 750:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return ["1"] * len(prompts)

    monkeypatch.setattr(prompts, "answer", scarce)
    found = evaluate(
        llama, tokenizer, task=["passkey"], lengths=[700, 800], samples=4, batch_tokens=10**6, alone=True, out=tmp_path,
        console=console,
    )  # fmt: skip
    assert sizes[:3] == [4, 2, 1]
    assert [(line["value"], line["why"]) for line in found["rows"][:2]] == [(0, None), (None, "out of memory")]
    assert "out of memory" in console.file.getvalue()  # type: ignore[attr-defined]


def test_files_are_cut_to_the_length_and_judged_ones_have_no_score(
    llama: Any, tokenizer: Any, tmp_path: Path, console: Console
) -> None:
    rows = [
        {"id": i, "task": task, "context": "x" * 500, "question": "y?", "answers": ["z"], "max_new_tokens": 4,
         "metric": metric, "meta": {"groups": [group]}}
        for i, (task, metric, group) in enumerate([("a", "qa_f1", "easy"), ("a", "qa_f1", "hard"), ("b", "judge", "-")])
    ]  # fmt: skip
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluate(
        llama, tokenizer, task=[f"jsonl:{path}"], lengths=[60], alone=True, batch_tokens=200, out=tmp_path / "out",
        console=console,
    )  # fmt: skip
    a, b, mean = found["rows"]
    assert a["detail"]["groups"] == {"stock": {"easy": 0.0, "hard": 0.0}}
    assert (b["value"], b["why"]) == (None, "for a judge to score")
    assert mean["value"] is None
    said = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert said[2]["prediction"]
    assert said[2]["score"] is None


class Tail:
    """A procedure for `custom_generate`: reads the question alone."""

    kind, name, reads_documents = "procedure", "tail", True

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, model: Any, input_ids: Any, generation_config: Any, head: int, question: int, **_: Any) -> Any:
        self.seen.append((head, question))
        return torch.cat([input_ids, input_ids[:, -3:]], dim=1)

    def check_room(self, model: Any, n_tokens: int) -> None:
        pass

    def running(self, model: Any) -> Any:
        return nullcontext({"custom_generate": self})

    def spec(self) -> dict[str, Any]:
        return {"name": "tail"}


def test_a_procedure_is_told_where_the_document_is(
    llama: Any, tokenizer: Any, tmp_path: Path, console: Console
) -> None:
    procedure = Tail()
    found = evaluate(
        llama,
        tokenizer,
        task=["kv"],
        lengths=[800],
        samples=2,
        method=procedure,
        alone=True,
        out=tmp_path,
        console=console,
    )
    assert found["settings"]["configurations"] == ["Tail"]
    assert len(procedure.seen) == 2
    head, question = procedure.seen[0]
    assert head == len("Extract the value corresponding to the specified key in the JSON object below.\n\n")
    assert 60 < question < 80
    said = [json.loads(line)["prediction"] for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert said == ["ue:", "ue:"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": []}, "give at least one"),
        ({"task": ["niah_single"]}, "Did you mean niah_single_"),
        ({"task": ["qa_1"]}, "Give it as qa_1:FILE"),
        ({"task": ["longbench"]}, "Give it as longbench:FILE"),
        ({"lengths": []}, "above 0"),
        ({"lengths": [60]}, "length=60: passkey takes more tokens"),
        ({"samples": 0}, "at least one sample"),
        ({"samples": [2]}, "one for each of 2 lengths"),
        ({"batch_tokens": 0}, "batch_tokens=0"),
        ({"depths": [2.0]}, "depth=2.0"),
        ({"window": 30}, "window=30: the answer to a sample of lines takes 35 tokens"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(
    llama: Any, tokenizer: Any, tmp_path: Path, console: Console, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(llama, tokenizer, out=tmp_path / "out", console=console, **{**TASKS, **change})
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there(llama: Any, tokenizer: Any, tmp_path: Path, console: Console) -> None:
    with pytest.raises(FileNotFoundError, match=r"No file at nowhere\.jsonl\. Give leval"):
        evaluate(llama, tokenizer, out=tmp_path, console=console, **{**TASKS, "task": ["leval:nowhere.jsonl"]})
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; expected the name of a folder"):
        evaluate(llama, tokenizer, out=tmp_path / "file", console=console, **TASKS)
