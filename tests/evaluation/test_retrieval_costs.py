"""The benchmark of look-ups: what it writes and asks about, RULER's tasks, and the parts about time and memory."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longctx import CodeLookup, stream
from recipes.benchmarks import paired_decode
from recipes.benchmarks.haystacks import Haystacks
from recipes.benchmarks.retrieval import __main__ as command
from recipes.benchmarks.retrieval import costs, large, older, one_layer, tasks, writing
from recipes.benchmarks.retrieval.asking import asked
from recipes.benchmarks.retrieval.one_layer import BARS, NOISE
from recipes.benchmarks.retrieval.run import LONG, TINY
from recipes.benchmarks.retrieval.scale import Scale
from recipes.benchmarks.retrieval.timed import EAGER, Recordings
from recipes.benchmarks.tables import render
from recipes.benchmarks.timing import Kernels
from tests.evaluation.retrieval_run import TOKENIZER, encode, made_texts, run_of


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Haystacks:
    return made_texts(tmp_path_factory.mktemp("texts"))


def by_what(rows: Any) -> dict[str, dict[str, Any]]:
    found = {one["what"]: one for one in rows}
    assert all(one["value"] is not None or one["why"] for one in found.values())
    assert all(one["why"] for one in found.values() if one["holds"] is False)
    return found


def test_lines_are_written_among_what_the_model_writes(texts: Haystacks) -> None:
    run = run_of(texts)
    questions, lines = writing._lines(run, 2, 260, 0, hidden="")
    assert len(questions) == len(lines) == 2
    again, _ = writing._lines(run, 2, 260, 0, hidden=questions[0].lines[0])
    assert again[0].lines != questions[0].lines
    with run.lookup.on(run.model):
        reader = stream(run.model, texts.make(300, 0), bounded=False, look_up=False)
        ids = writing._write(run, reader, lines, 260, 0)
    assert ids is not None
    assert len(ids) == 260
    said = TOKENIZER.decode(ids)
    assert all(line in said for one in questions for line in one.lines)
    assert [ids[at : at + len(line)].tolist() for at, line in lines] == [line for _, line in lines]
    starts = [at for at, _ in lines]
    assert starts == sorted(starts)


def test_answers_about_what_was_written_are_those_about_the_same_text_read(texts: Haystacks) -> None:
    """A store that grew token by token finds what one does that was read: the answers' nats, without a gate."""
    run = run_of(texts)
    method = CodeLookup(n_global=4, n_local=48, top_k=6, shortlist=12, gate=None)
    questions, lines = writing._lines(run, 1, 110, 1, hidden="")
    with method.on(run.model):
        reader = stream(run.model, texts.make(150, 0), bounded=False)
        ids = writing._write(run, reader, lines, 110, 1)
        assert ids is not None
        later = texts.make(60, 2)
        reader.read(later)
        twin = stream(run.model, torch.cat([texts.make(150, 0), ids, later]), bounded=False)
        for one in questions:
            _, grown = asked(run.model, encode, reader.cache, one)
            _, read = asked(run.model, encode, twin.cache, one)
            assert grown == pytest.approx(read, rel=1e-4)


def test_what_was_written_is_asked_about_and_time_that_is_over_is_said(texts: Haystacks) -> None:
    sizes = replace(TINY, written=(1, 130, 1))
    rows = by_what(writing.written(run_of(texts, sizes)))
    first, second = rows.values()
    assert first["beside"]["questions"] == 12
    assert second["beside"]["questions"] == 1
    over = by_what(writing.written(run_of(texts, sizes, until=0.0)))
    assert all(one["value"] is None and "the time was over" in one["why"] for one in over.values())


def test_every_task_of_ruler_has_the_samples_there_was_time_for(
    texts: Haystacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "RULER", ("vt", "fwe"))
    right = {"vt": [50.0, 0.0], "fwe": [100.0, 0.0]}
    told: list[str] = []

    def points(said: str, one: Any) -> float:
        assert isinstance(said, str)
        told.append(one.task)
        return right[one.task][int(one.id.rpartition("-")[2])]

    monkeypatch.setattr(tasks, "_points", points)
    run = run_of(texts, replace(TINY, ruler=2))
    monkeypatch.setattr(type(run), "time_is_over", property(lambda _: len(told) >= 8 + 2))  # after one round
    rows = by_what(tasks.ruler(run))
    average = rows["reader, RULER, average of 2 tasks, 2,048 tokens"]
    assert average["value"] == 75.0
    assert average["beside"] == {"LM-Infinite": 75.0, "stock, in its window": 75.0}
    assert rows["reader, RULER, vt, 2,048 tokens"]["value"] == 50.0
    assert average["detail"]["samples"] == 1
    assert average["bar"] is None
    assert run.at_length(LONG, ">= 20") == ">= 20"


@pytest.mark.parametrize("part", ["decoding", "recordings", "reading", "beams", "attention"])
def test_every_row_of_a_cost_has_a_value_or_says_why(part: str, texts: Haystacks) -> None:
    rows = by_what(costs.COSTS[part](run_of(texts)))
    if part == "recordings":
        assert [one["value"] for one in rows.values()] == [0, None]
        assert all(one["why"] == EAGER for one in rows.values())
    elif part == "beams":
        (row,) = rows.values()
        assert 1 < row["value"] <= 4.1  # no piece of so short a text is complete
    else:
        told = {what: one for what, one in rows.items() if one["value"] is None}
        if part == "decoding":
            tokens = next(iter(rows.values()))["detail"]["a token"]
            assert {"LM-Infinite", "codes", "all keys"} <= tokens.keys()
            assert all(one["until its call returns, ms"] > 0 for one in tokens.values())
        assert all(one["value"] > 0 for what, one in rows.items() if what not in told)
        # a tiny random model may have no head that retrieves, and another process may hold up the smaller of two models
        reasons = {"attention of one token": NOISE, "gate='heads'": "no head looks up the next token"}
        assert all(any(kind in what and reasons[kind] in told[what]["why"] for kind in reasons) for what in told)


def test_what_a_layer_adds_is_told_from_what_is_once_a_forward(
    monkeypatch: pytest.MonkeyPatch, texts: Haystacks
) -> None:
    names = {f"kernel {n}": (20.0 - n, 1.0) for n in range(15)}
    # without the method 5 µs a layer and 2 a forward; with it 30 and 9, and at the second length no more than without
    times = iter((7.0, 17.0, 39.0, 99.0, 7.0, 17.0))
    monkeypatch.setattr(one_layer, "_kernels", lambda *_: (Kernels(next(times), names), True))
    monkeypatch.setattr(one_layer, "_sdpa_us", lambda *_: 100.0)
    first, second = one_layer.attention(run_of(texts))
    assert first["value"] == 100 / 25
    assert first["beside"] == {
        "torch, all keys, µs": 100.0, "hf_longctx, µs": 25.0, "the layer without attention, µs": 5.0,
        "once a forward, µs": 9.0, "once a forward without the method, µs": 2.0,
    }  # fmt: skip
    longest = first["detail"]["longest kernels of 3 layers"]
    assert list(longest) == [f"kernel {n}" for n in range(12)]
    assert longest["kernel 0"] == "20.0 µs, 1 launches"
    assert (second["value"], second["why"]) == (None, NOISE)


def test_bars_are_of_the_lengths_that_are_measured() -> None:
    scale = Scale()
    assert set(scale.attended) == set(BARS)
    assert (scale.far, scale.written, scale.asked) == (1_000_000, 4096, 256)


def test_keys_on_the_host_are_measured_where_there_are_any(texts: Haystacks, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = by_what(large.large(run_of(texts)))
    assert len(refused) == 4
    for one in refused.values():
        assert one["value"] is None
        assert one["why"].startswith("not available: on_host=True: ")
    monkeypatch.setattr(large, "CodeLookup", lambda on_host=False, **more: CodeLookup(**more))
    first, token, over_device, held = by_what(large.large(run_of(texts))).values()
    assert first["value"] > 0
    assert set(first["detail"]) == {"host", "device", "LM-Infinite"}
    assert token["value"] == pytest.approx(token["beside"]["host, ms"] / token["beside"]["LM-Infinite, ms"])
    assert over_device["value"] == pytest.approx(token["beside"]["host, ms"] / token["beside"]["device, ms"])
    # 2 layers of 2 heads of 32, keys and values in fp32, 700 tokens; nothing is counted on a CPU
    assert held["beside"]["all keys and values, GiB"] == pytest.approx(700 * 2 * 2 * 32 * 2 * 4 / 2**30)


def test_recordings_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def __init__(self, of: Any) -> None:
            self.of = of

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "graph", Graph)
    counted = Recordings()
    with counted.counted():
        for _ in range(2):
            with torch.cuda.graph("x"):  # type: ignore[arg-type]
                pass
    assert torch.cuda.graph is Graph
    assert len(counted.seconds) == 2
    assert min(counted.seconds) >= 0


def test_an_older_tree_is_compared_with_in_turn(texts: Haystacks, monkeypatch: pytest.MonkeyPatch) -> None:
    without = by_what(older.older(run_of(texts)))
    assert all(one["value"] is None and "--older DIR" in one["why"] for one in without.values())

    class Worker:
        def __init__(self, tree: Path, tiny: bool, kind: str) -> None:
            assert tiny
            assert kind in paired_decode.WORK
            self.old = tree == Path("old")

        def ready(self) -> None:
            pass

        def sample(self, asked: str) -> float:
            return {"read 300": 4.0 if self.old else 3.0, "write 300": 50.0 if self.old else 10.0}[asked]

        def close(self) -> None:
            pass

    monkeypatch.setattr(older, "Worker", Worker)
    read, write = by_what(older.older(run_of(texts, older=Path("old")))).values()
    assert (read["value"], read["holds"], read["beside"]) == (0.75, True, {"older tree, s": 4.0, "this tree, s": 3.0})
    assert (write["value"], write["holds"]) == (5.0, False)


def test_a_tree_answers_with_the_time_of_what_it_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("read 60\nwrite 60\n"))
    paired_decode.looking_up(tiny=True)
    said = [line.removeprefix(paired_decode.SAMPLE) for line in capsys.readouterr().out.splitlines()]
    assert said[0].endswith("hf_longctx/__init__.py")
    assert all(float(one) > 0 for one in said[1:])
    assert len(said) == 3


def test_costs_are_measured_once_and_parts_after_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def decoding(_: Any) -> Any:
        raise RuntimeError("no room")
        yield

    monkeypatch.setitem(costs.COSTS, "decoding", decoding)
    words = ["--tiny", "--out", str(tmp_path), "--commit", "abc", "--seeds", "0", "1"]
    with pytest.raises(SystemExit, match="these parts failed: decoding of the stock reader"):
        command.main([*words, "--parts", "decoding", "beams"])
    assert "RuntimeError: no room" in capsys.readouterr().err
    result = json.loads((tmp_path / "retrieval.json").read_text(encoding="utf-8"))
    assert [one["what"] for one in result["rows"]] == ["4 beams after 1,200 tokens: bytes over those of one"]


def test_a_folder_without_the_package_is_no_older_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--tiny", "--parts", "older", "--older", str(tmp_path)])
    assert "there is no hf_longctx in it. Give the root of a checkout" in capsys.readouterr().err


def test_bars_are_rendered_without_what_stands_beside_them(tmp_path: Path) -> None:
    same: dict[str, Any] = {"command": "c", "commit": "0", "hardware": "h", "versions": {}, "model": "m"}
    held = {"what": "a", "value": 2, "unit": "x", "bar": ">= 1", "holds": True, "why": None, "beside": {"b": 3}}
    rows = [held, {**held, "what": "z", "bar": None, "holds": None}, {**held, "what": "n", "value": None, "why": "w"}]
    (tmp_path / "one.json").write_text(json.dumps({**same, "date": "2026-01-02T03:04:05+00:00", "rows": rows}))
    text = render("<!-- bars:one -->\n<!-- /bars -->\n<!-- bars:none -->\n<!-- /bars -->\n", tmp_path)
    assert "| a | 2 x | >= 1: holds |" in text
    assert "| n | – | >= 1: not measured |" in text
    assert "- n: w" in text
    assert "| z |" not in text
    assert text.endswith("<!-- bars:none -->\n*Not measured yet.*\n<!-- /bars -->\n")


def test_a_block_has_the_rows_alone_whose_names_have_its_words(tmp_path: Path) -> None:
    same: dict[str, Any] = {"command": "c", "commit": "0", "hardware": "h", "versions": {}, "model": "m"}
    held = {"what": "64k, gate=None", "value": 0.5, "unit": "", "bar": None, "holds": None, "why": None}
    rows = [{**held, "beside": {"text": 1.2}}, {**held, "what": "decoding, gate=None", "beside": {}}]
    (tmp_path / "one.json").write_text(json.dumps({**same, "date": "2026-01-02T03:04:05+00:00", "rows": rows}))
    text = render("<!-- only:one 64k, gate= -->\nold\n<!-- /only -->\n", tmp_path)
    assert text.startswith("<!-- only:one 64k, gate= -->\n")
    assert "| 64k, gate=None | 0.5 | 1.2 |" in text
    assert "decoding" not in text
    assert "old" not in text
    assert render(text, tmp_path) == text
    assert render(text, tmp_path) == text
