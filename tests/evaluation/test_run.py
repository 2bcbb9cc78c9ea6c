from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from hf_longctx.evaluation import runner
from hf_longctx.evaluation.perplexity import fixed_targets
from hf_longctx.evaluation.report import plots
from hf_longctx.evaluation.report.files import ResultFile
from hf_longctx.evaluation.report.measured import measured
from hf_longctx.evaluation.runner import evaluate
from hf_longctx.evaluation.tasks import passkey, ppl
from hf_longctx.text.corpora import load_text, tokenize_documents
from tests.evaluation.conftest import Louder

PAGE = load_text("python-docs")[:5000]
PPL: dict[str, Any] = {
    "task": "ppl", "lengths": [32, 64, 96], "n_targets": 8, "documents": 2, "chunk": 32, "score_chunk": 8,
    "command": "test",
}  # fmt: skip
PASSKEY: dict[str, Any] = {
    "task": "passkey", "lengths": [400, 500], "depths": [0.0, 1.0], "trials": 2, "window": 420, "batch_size": 2,
    "command": "test",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of the documentation: tokenizing all of it would take most of the time."""
    monkeypatch.setattr(ppl, "documents", lambda tokenizer, _, *size: tokenize_documents(tokenizer, PAGE, *size))


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=120)


def same(results: dict[str, Any]) -> list[Any]:
    """Rows without what no two runs share."""
    rows = json.loads(json.dumps(results["rows"]))
    for line in rows:
        del line["detail"]["seconds"], line["detail"]["peak_gib"]
    return rows


def test_perplexity_of_stock_truncated_and_method(llama: Any, tokenizer: Any, tmp_path: Path, console: Console) -> None:
    method, before = Louder(), llama.lm_head.weight.clone()
    found = evaluate(llama, tokenizer, method=method, out=tmp_path, console=console, **PPL)
    assert torch.equal(llama.lm_head.weight, before)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(found))
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert found["settings"]["configurations"] == ["stock", "last 64 tokens", "Louder"]
    assert found["settings"]["method"] == {"name": "louder"}

    documents = list(tokenize_documents(tokenizer, PAGE, 96, 2))
    expected = [score.perplexity for score in fixed_targets(llama, documents, [32, 64, 96], n_targets=8)]
    stock = [line["beside"]["stock"] for line in found["rows"]]
    truncated = [line["beside"]["last 64 tokens"] for line in found["rows"]]
    assert stock == pytest.approx(expected, rel=1e-4)
    assert truncated == [stock[0], stock[1], stock[1]]
    with method.running(llama):
        louder = [score.perplexity for score in fixed_targets(llama, documents, [32, 64, 96], n_targets=8)]
    assert [line["value"] for line in found["rows"]] == pytest.approx(louder, rel=1e-4)
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert "last 64 tokens" in shown
    assert "Louder" in shown
    (kept,) = measured([ResultFile("results.json", found)])
    assert kept.curve("stock") == pytest.approx(dict(zip([32, 64, 96], stock, strict=True)))


def test_passkey_of_stock_and_truncated(llama: Any, tokenizer: Any, tmp_path: Path, console: Console) -> None:
    found = evaluate(llama, tokenizer, out=tmp_path, console=console, **PASSKEY)
    assert [(line["detail"]["length"], line["detail"]["depth"]) for line in found["rows"]] == [
        (400, 0), (400, 1), (500, 0), (500, 1)
    ]  # fmt: skip
    assert found["rows"][0]["detail"]["trials"] == {"stock": 2, "last 420 tokens": 2}
    # 4 stock cells, and truncation only where 420 - 8 tokens don't hold the prompt.
    cells = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()[1:]]
    assert [cell["key"] for cell in cells] == [
        ["stock", 400, 0.0, None], ["stock", 400, 1.0, None], ["stock", 500, 0.0, None], ["stock", 500, 1.0, None],
        ["stock", 500, 0.0, 412], ["stock", 500, 1.0, 412],
    ]  # fmt: skip
    (kept,) = measured([ResultFile("results.json", found)])
    drawn = {name: kept.grid(name) for name in kept.configurations}
    assert [len(cells) for cells in drawn.values()] == [4, 4]
    plots.summary_figure({"stock": {400: 2.0}}, drawn)
    assert (tmp_path / "figure.png").exists()


@pytest.mark.parametrize("task", [PPL, PASSKEY], ids=["ppl", "passkey"])
def test_an_interrupted_run_resumes_with_the_same_result(
    llama: Any, tokenizer: Any, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch, task: dict[str, Any]
) -> None:
    ran: list[Any] = []

    def watched(value: Any) -> Any:
        def measured(self: Any, model: Any, cell: Any, progress: Any) -> Any:
            if len(ran) == stop_after:
                raise KeyboardInterrupt
            ran.append(cell.key)
            return value(self, model, cell, progress)

        return measured

    for kind in (ppl._Spans, passkey._Prompts):
        monkeypatch.setattr(kind, "value", watched(kind.value))
    stop_after = -1
    whole = evaluate(llama, tokenizer, method=Louder(), out=tmp_path / "whole", console=console, **task)
    everything = list(ran)
    # Once among the stock cells, once among the method's.
    for stop_after in (2, len(everything) - 2):
        before = llama.lm_head.weight.clone()
        if stop_after == 2:
            ran.clear()
        with pytest.raises(KeyboardInterrupt):
            evaluate(llama, tokenizer, method=Louder(), out=tmp_path / "part", console=console, **task)
        assert torch.equal(llama.lm_head.weight, before)
        assert not (tmp_path / "part" / "results.json").exists()
    stop_after = -1
    resumed = evaluate(llama, tokenizer, method=Louder(), out=tmp_path / "part", console=console, **task)
    assert ran == everything
    assert same(resumed) == same(whole)

    ran.clear()
    evaluate(llama, tokenizer, method=Louder(), out=tmp_path / "part", console=console, **task)
    assert ran == []


def test_another_run_in_the_same_folder_is_refused(
    llama: Any, tokenizer: Any, tmp_path: Path, console: Console
) -> None:
    evaluate(llama, tokenizer, out=tmp_path, console=console, **PPL)
    with pytest.raises(ValueError, match=r"n_targets was 8 and is 4.*--out"):
        evaluate(llama, tokenizer, out=tmp_path, console=console, **{**PPL, "n_targets": 4})
    # A model without a name is still told from another.
    llama.lm_head.weight.data.add_(1)
    with pytest.raises(ValueError, match="weights was"):
        evaluate(llama, tokenizer, out=tmp_path, console=console, **PPL)


def test_a_length_that_does_not_fit_into_memory_is_reported_and_tried_again(
    llama: Any, tokenizer: Any, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(model: Any, documents: Any, lengths: list[int], **options: Any) -> Any:
        if lengths[0] > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return fixed_targets(model, documents, lengths, **options)

    monkeypatch.setattr(ppl, "fixed_targets", scarce)
    found = evaluate(llama, tokenizer, out=tmp_path, console=console, **PPL)
    assert [line["beside"]["stock"] is None for line in found["rows"]] == [False, False, True]
    assert all(line["value"] for line in found["rows"])
    assert "out of memory" in console.file.getvalue()  # type: ignore[attr-defined]
    monkeypatch.setattr(ppl, "fixed_targets", fixed_targets)
    again = evaluate(llama, tokenizer, out=tmp_path, console=console, **PPL)
    assert again["rows"][2]["beside"]["stock"] > 1


def test_a_model_that_broke_down_entirely_still_gives_a_result(
    llama: Any, tokenizer: Any, tmp_path: Path, console: Console
) -> None:
    llama.lm_head.weight.data.fill_(math.nan)
    found = evaluate(llama, tokenizer, out=tmp_path, console=console, **PPL)
    assert [line["value"] for line in found["rows"]] == [None] * 3
    assert found["rows"][0]["why"] == "the value is nan"
    assert "not finite" in console.file.getvalue()  # type: ignore[attr-defined]
    # Nothing to draw is no reason to fail.
    assert not (tmp_path / "figure.png").exists()


def test_a_model_that_carries_a_method_is_measured_as_loaded(
    llama: Any, tokenizer: Any, tmp_path: Path, console: Console
) -> None:
    llama.config.hf_longctx = {"version": 1, "methods": [{"name": "lm_infinite"}]}
    with pytest.raises(ValueError, match="already carries a method"):
        evaluate(llama, tokenizer, method=Louder(), out=tmp_path, console=console, **PPL)
    found = evaluate(llama, tokenizer, out=tmp_path, console=console, **PPL)
    assert found["settings"]["configurations"][0] == "as loaded"


def test_a_method_that_refuses_the_model_does_so_before_anything_runs(
    llama: Any, tokenizer: Any, tmp_path: Path, console: Console
) -> None:
    class Refuses(Louder):
        def running(self, model: Any) -> Any:
            raise ValueError("not this model")

    with pytest.raises(ValueError, match="not this model"):
        evaluate(llama, tokenizer, method=Refuses(), out=tmp_path, console=console, **PPL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "nih"}, "no such task. Did you mean niah"),
        ({"task": "ppl,kv"}, "ppl is measured alone"),
        ({"trials": 3}, "ppl: no setting 'trials'.*There are: documents, n_targets, chunk, score_chunk"),
        ({"n_targets": "8"}, "n_targets='8' is str, expected int"),
        ({"depths": [0.5]}, "perplexity has no depth"),
        ({"lengths": []}, "at least one"),
        ({"lengths": [0, 32]}, "above 0"),
        ({"window": 8}, "window=8 leaves no room for context"),
        ({"lengths": [8, 32]}, "holds no context"),
        ({"lengths": [10**6]}, "documents of 1,000,000 need 2,000,000"),
    ],
)
def test_wrong_arguments_are_refused(
    llama: Any, tokenizer: Any, tmp_path: Path, console: Console, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(llama, tokenizer, out=tmp_path, console=console, **{**PPL, **change})


def test_what_a_pass_key_cannot_be_hidden_in_is_refused(
    llama: Any, tokenizer: Any, tmp_path: Path, console: Console
) -> None:
    with pytest.raises(ValueError, match='expected "filler"'):
        evaluate(llama, tokenizer, out=tmp_path, console=console, **{**PASSKEY, "haystack": "moby"})


def test_the_method_alone(llama: Any, tokenizer: Any, tmp_path: Path, console: Console) -> None:
    found = evaluate(llama, tokenizer, method=Louder(), alone=True, out=tmp_path, console=console, **PPL)
    assert found["settings"]["configurations"] == ["Louder"]
    assert [line["beside"] for line in found["rows"]] == [{}] * 3


def test_a_config_without_positions_asks_for_the_window() -> None:
    with pytest.raises(ValueError, match="Pass window="):
        runner.checked_window(SimpleNamespace(), None, 8)
    assert runner.checked_window(SimpleNamespace(max_position_embeddings=64), None, 8) == 64


def test_the_folder_of_a_model_is_not_recorded(llama: Any, tmp_path: Path) -> None:
    llama.config._name_or_path = str(tmp_path)
    assert runner.model_name(llama) == tmp_path.name
