"""`hf-longctx report`: what is read, what is said, and that the page stands alone."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from hf_longctx.cli.main import app
from hf_longctx.evaluation.report.files import ResultFile, collect
from hf_longctx.evaluation.report.measured import groups, measured
from hf_longctx.evaluation.report.render import page, terminal
from hf_longctx.evaluation.report.sections import Section, glance, sections
from hf_longctx.evaluation.report.write import write_report
from hf_longctx.evaluation.results import write_results
from hf_longctx.evaluation.rows import row
from hf_longctx.evaluation.tasks.passkey import passkey_rows
from hf_longctx.evaluation.tasks.ppl import perplexity_rows

HEAD: dict[str, Any] = {
    "command": "hf-longctx eval m --task x", "commit": "0123456789abcdef", "hardware": "one CPU", "model": "a model",
    "versions": {"torch": "2.13.0"}, "date": "2026-01-02T03:04:05+00:00",
}  # fmt: skip


def passkey(method: str = "LMInfinite", spec: Any = 1, seed: int = 0, found: int = 3) -> dict[str, Any]:
    """What `hf-longctx eval --task passkey` writes; stock runs out of memory at 2,048 tokens."""
    names, cost = ["stock", "last 512 tokens", method], {"seconds": 1.5, "peak_gib": 2.25}
    grid = [(n, d) for n in (512, 2048) for d in (0.0, 1.0)]
    cells: dict[str, Any] = {
        "stock": {at: None if at[0] > 512 else {"correct": 4, "trials": 4, **cost} for at in grid},
        "last 512 tokens": {at: {"correct": 4 if at[0] == 512 or at[1] else 0, "trials": 4, **cost} for at in grid},
        method: {at: {"correct": found, "trials": 4, **cost} for at in grid},
    }
    settings = {"task": "passkey", "seed": seed, "text": "filler", "trials": 4, "window": 512, "configurations": names}
    settings |= {"method": {"name": method, "n": spec}, "method_repr": f"{method}(n={spec})"}
    return {**HEAD, "settings": settings, "rows": passkey_rows(cells)}


def ppl() -> dict[str, Any]:
    names = ["stock", "last 512 tokens", "LMInfinite"]
    nll = {"stock": [2.5, 9.3], names[1]: [2.5, 2.5], "LMInfinite": [2.5, 2.4]}
    cells = {
        name: {(n, 0): {"nll": nll[name][i], "seconds": 1.0, "peak_gib": None} for i, n in enumerate((512, 2048))}
        for name in names
    }
    settings = {"task": "ppl", "text": "book", "documents": 1, "n_targets": 8, "window": 512, "configurations": names}
    return {**HEAD, "settings": settings, "rows": perplexity_rows(cells, 8)}


def by_method(tasks: dict[str, float | None], **more: Any) -> dict[str, Any]:
    """One row a method, length and task, as benchmarks write them."""
    rows = [
        row(f"{task} {n}", value, "share of trials", why=None if value is not None else "not run",
            detail={"task": task, "method": method, "length": n, **more})
        for task, value in tasks.items() for method in ("stock", "XL3M") for n in (4096, 20_000_000)
    ]  # fmt: skip
    return {**HEAD, "rows": rows}


def files(*data: dict[str, Any]) -> list[ResultFile]:
    return [ResultFile(f"{i}.json", json.loads(json.dumps(one))) for i, one in enumerate(data)]


def texts(found: list[Section]) -> list[list[str]]:
    return [[cell.text for cell in line] for section in found for table in section.tables for line in table.lines]


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == [], "left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def whole() -> str:
    found = sections(files(passkey(), ppl(), by_method({"niah": 0.5}, depth=0.25)))
    return page(found, [], "What was measured")


def test_the_page_loads_nothing_and_runs_nothing(whole: str) -> None:
    parsed = Page(whole)
    assert not {"script", "link", "iframe", "object", "embed", "img", "base", "form"} & set(parsed.tags)
    links = [value for _, name, value in parsed.attributes if name in ("href", "src", "xlink:href", "srcset", "action")]
    assert all(value.startswith("#") for value in links)
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    assert {link[1:] for link in links} <= set(ids)
    assert not re.findall(r"url\((?!#)|@import|javascript:", whole)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert "default-src 'none'" in whole


def test_every_number_is_on_the_page(whole: str) -> None:
    words = Page(whole).words
    for number in ("100", "75", "0", "–", "50"):  # cells of the grids
        assert number in words
    for number in ("100 % (68–100)", "50 % (22–78)", "75 % (41–93)", "50 %", "12.18", "10,938", "11.02"):
        assert number in words, number
    assert "3.0 s, 2.2 GiB" in words
    assert "out of memory" in words


def test_those_who_do_not_see_it_are_told(whole: str) -> None:
    parsed = Page(whole)
    assert parsed.tags.count("caption") == parsed.tags.count("table")
    assert parsed.tags.count("th") == sum(name == "scope" for _, name, _ in parsed.attributes)
    (alt,) = [
        v for tag, name, v in parsed.attributes if (tag, name) == ("svg", "aria-label") and v.startswith("Perplexity")
    ]
    assert "stock: 12.18 at 512 tokens, 10,938 at 2,048" in alt
    assert ("html", "lang", "en") in parsed.attributes
    hints = [value for tag, name, value in parsed.attributes if (tag, name) == ("td", "title")]
    assert "2,048 tokens, depth 100 %: 75 %, 3 of 4" in hints
    assert "2,048 tokens, depth 0 %: out of memory" in hints


def test_light_and_dark_have_their_own_lines(whole: str) -> None:
    assert "prefers-color-scheme: dark" in whole
    svg = whole[whole.index("<svg") :]
    assert "stroke: var(--line-2" in svg
    assert "fill: #ffffff" not in svg


def test_what_comes_from_a_file_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'--><svg onload=alert(2)>&amp;{{ 7 * 7 }}[bold]"
    data = passkey(method=evil)
    data |= {"model": evil, "hardware": evil, "command": evil}
    data["settings"] |= {"text": evil, "task": evil}
    line = {"what": evil, "value": 1, "unit": evil, "bar": evil, "why": evil, "beside": {evil: evil}}
    write_results(tmp_path / "a" / "results.json", data)
    write_results(tmp_path / "<img src=x onerror=alert(3)>.json", {**HEAD, "rows": [line]})
    (tmp_path / "<b>.json").write_text("{")
    console = Console(file=io.StringIO(), width=200)
    text = write_report(tmp_path, title=evil, console=console).read_text()
    parsed = Page(text)
    assert not {"script", "img"} & set(parsed.tags)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert "49" not in parsed.words
    assert evil in "".join(parsed.words)
    assert "[bold]" in console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO


def test_files_that_are_no_results_are_named_and_do_not_stop_it(tmp_path: Path) -> None:
    write_results(tmp_path / "good" / "results.json", passkey())
    broken: dict[str, tuple[str | bytes, str]] = {
        "cut.json": ('{"rows": [', "is no whole JSON"),
        "empty.json": ("", "is empty"),
        "latin.json": ('"é"'.encode("latin-1"), "is not UTF-8 text"),
        "config.json": ('{"model_type": "llama"}', 'it has no "rows"'),
        "list.json": ("[1]", 'it has no "rows"'),
        "bare.json": ('{"rows": []}', 'lacks "command"'),
        "none.json": (json.dumps({**HEAD, "rows": []}), 'has no rows in "rows"'),
        "what.json": (json.dumps({**HEAD, "rows": [{"value": 1}]}), 'has no "what" in row 1'),
        "text.json": (json.dumps({**HEAD, "rows": [{"what": "x", "value": "1"}]}), 'no number in "value" of row 1'),
        "odd.json": (json.dumps({**HEAD, "rows": [{"what": "x", "value": 1, "detail": [1]}]}), 'no object in "detail"'),
        "deep.json": ("[" * 100_000, "is nested too deeply"),
    }
    for name, (content, _) in broken.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "cells.jsonl").write_text("{}")
    (tmp_path / ".hidden.json").write_text("{")
    found, left = collect(tmp_path)
    assert [file.name for file in found] == ["good/results.json"]
    why = {file.name: file.why for file in left}
    assert set(why) == {*broken, "half"}
    for name, (_, expected) in broken.items():
        assert expected in why[name], name
    assert "the same command again finishes it" in why["half"]
    console = Console(file=io.StringIO(), width=200)
    text = write_report(tmp_path, console=console).read_text()
    assert all(name in text for name in why)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "cut.json is no whole JSON" in told
    assert "3 other JSON files are not shown" in told
    assert [file.name for file in collect(tmp_path)[0]] == ["good/results.json"], "the page is no input of the next one"


@pytest.mark.parametrize(
    ("content", "message"),
    [({}, "there is no .json file in it"), ({"a.json": "{"}, "a.json is no whole JSON"),
     ({f"{i}.json": "{}" for i in range(5)}, "and 2 more")],
)  # fmt: skip
def test_a_folder_without_results_is_an_error(tmp_path: Path, content: dict[str, str], message: str) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "hf-longctx eval MODEL" in result.stderr
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_not_there_and_a_file_for_out_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write_report(tmp_path / "nowhere")
    write_results(tmp_path / "one.json", passkey())
    with pytest.raises(ValueError, match="is a file"):
        write_report(tmp_path, tmp_path / "one.json")


def test_the_command_writes_a_page_and_figures(tmp_path: Path) -> None:
    write_results(tmp_path / "one.json", passkey())
    result = CliRunner().invoke(app, ["report", str(tmp_path / "one.json"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "75 % (41–93)" in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == [
        "report.html", "s1-passkey-retrieval-curve.png", "s1-passkey-retrieval-curve.svg",
        "s1-passkey-retrieval-grid.png", "s1-passkey-retrieval-grid.svg",
    ]  # fmt: skip
    assert (tmp_path / "out/figures/s1-passkey-retrieval-grid.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "report.html").exists()


def test_methods_measured_alike_stand_side_by_side() -> None:
    two = files(passkey("LMInfinite"), passkey("StreamingLLM", found=1))
    (section,) = sections(two)
    assert section.tables[0].head == ["tokens read", "stock", "last 512 tokens", "LMInfinite", "StreamingLLM"]
    assert [grid.caption for grid in section.grids] == section.tables[0].head[1:]
    # the same method with other settings is told apart by them, and keeps its counts
    (section,) = sections(files(passkey(spec=1), passkey(spec=2, found=1)))
    assert section.tables[0].head[-2:] == ["LMInfinite(n=1)", "LMInfinite(n=2)"]
    assert [line[-1] for line in texts([section])] == ["25 % (7–59)", "25 % (7–59)"]
    # another seed is another measurement
    assert len(groups(files(passkey(seed=0), passkey(seed=1)))) == 2
    titles = [section.title for section in sections(files(passkey(seed=0), passkey(seed=1)))]
    assert titles == ["Passkey retrieval (0)", "Passkey retrieval (1)"]


def test_one_row_a_method_makes_heat_maps() -> None:
    (section,) = sections(files(by_method({"needle": 0.5}, depth=0.5, trials=2, correct=1)))
    assert [grid.caption for grid in section.grids] == ["stock", "XL3M"]
    assert section.grids[0].columns == ["4k", "20M"]
    assert section.grids[0].lines[0][0] == "50 %"
    assert section.grids[0].lines[0][1][0].text == "50"
    assert [chart.name for chart in section.charts] == ["s1-needle-curve", "s1-needle-grid"]


def test_many_tasks_make_one_grid_and_their_mean() -> None:
    data = by_method({"niah": 1.0, "vt": 0.5, "cwe": None})
    for line in data["rows"]:
        if line["detail"]["length"] == 4096:
            line["value"], line["why"] = line["value"] or 0.0, None
    (section,) = sections(files(data))
    assert [label for label, _ in section.grids[0].lines] == ["niah", "vt", "cwe", "mean of 3 tasks"]
    assert [[cell.text for cell in cells] for _, cells in section.grids[0].lines] == [
        ["100", "100"], ["50", "50"], ["0", "–"], ["50", "–"],
    ]  # fmt: skip
    assert texts([section])[0] == ["4,096", "50 %", "50 %"]
    assert len(section.more) == 3
    near_and_far = glance([section])
    assert near_and_far is not None
    assert [(c.text, c.note) for c in near_and_far.lines[0]] == [
        ("stock", "mean of 3 tasks"), ("50 %", "4k tokens"), ("–", "20M tokens, not run"),
    ]  # fmt: skip


def test_a_suite_shows_its_tasks_their_mean_and_how_far_they_reach() -> None:
    def cell(task: str, length: int, ours: list[float], stock: list[float] | None) -> dict[str, Any]:
        scores = {"stock": stock, "LMInfinite": ours}
        there = {name: marks for name, marks in scores.items() if marks is not None}
        detail = {
            "task": task,
            "length": length,
            "scores": there,
            "samples": {name: len(m) for name, m in there.items()},
        }
        mean = {name: 100 * sum(marks) / len(marks) for name, marks in there.items()}
        return row(f"{task} {length}", mean["LMInfinite"], "points of 100", beside={"stock": mean.get("stock")},
                   detail=detail | {"seconds": dict.fromkeys(there, 2.0)})  # fmt: skip

    rows = [cell("vt", 4096, [1, 1], [1, 1]), cell("vt", 8192, [1, 0], None)]
    rows += [cell("cwe", 4096, [0.5, 0.25], [0.5, 0.5]), cell("cwe", 8192, [0.2, 0.4], None)]
    average = {"task": "average", "at_length": 4096}
    rows += [row("average of 2 tasks", 68.75, "points of 100", beside={"stock": 75.0}, detail=average)]
    rows += [row("effective length", 4096, "tokens", beside={"stock": 4096}, detail={"averages": {}})]
    settings = {"task": ["vt", "cwe"], "window": 4096, "configurations": ["stock", "LMInfinite"]}
    (section,) = sections(files({**HEAD, "settings": settings, "rows": rows}))
    assert section.title == "vt, cwe"
    assert texts([section]) == [
        ["4,096", "75 %", "69 %"], ["8,192", "–", "40 %"], ["effective length", "4,096 tokens", "4,096"],
    ]  # fmt: skip
    assert section.tables[1].head == ["what", "LMInfinite", "stock"]
    vt, cwe = section.more
    assert [cell.text for cell in vt.lines[1]] == ["8,192", "–", "50 % (9–91)"]  # type: ignore[union-attr]
    assert [cell.note for cell in vt.lines[1]] == ["", "out of memory", "2.0 s"]  # type: ignore[union-attr]
    assert cwe.lines[0][2].text == "38 %"  # type: ignore[union-attr,index]


def test_scores_in_percent_are_shares() -> None:
    data = {**HEAD, "rows": [row("x", 85.6, "points of 100", detail={"length": 4096, "task": "ruler"})]}
    (task,) = measured(files(data))
    assert task.kind == "share"
    assert task.curve("hf_longctx") == {4096: pytest.approx(0.856)}


def test_counts_do_not_turn_other_units_into_shares() -> None:
    detail = {"length": 4096, "trials": 2, "correct": 1, "scores": {"hf_longctx": [1, 0]}}
    (section,) = sections(files({**HEAD, "rows": [row("x", 50.0, "marks", detail=detail)]}))
    assert texts([section]) == [["4,096", "50 marks"]]
    assert "interval" not in section.tables[0].caption


def test_rows_of_other_kinds_stay_as_they_are() -> None:
    rows = [row("speed", 12.5, "x", bar=">= 30", why="too slow", beside={"stock": "3 s"}, detail={"length": 4096})]
    (section,) = sections(files({**HEAD, "rows": [*rows, row("bytes", None, "GiB")]}))
    assert texts([section])[-2:] == [["speed", "12.5 x", "3 s", ">= 30: missed"], ["bytes", "–", "–", "–"]]
    assert section.notes == ["speed: too slow"]
    assert glance([section])


def test_rows_that_would_hide_each_other_stay_rows() -> None:
    rows = [row(f"{what} at 4k", value, "share", detail={"length": 4096}) for what, value in (("a", 0.5), ("b", 0.25))]
    (section,) = sections(files({**HEAD, "rows": [*rows, row("c at 8k", 1.0, "share", detail={"length": 8192})]}))
    assert texts([section]) == [["8,192", "100 %"], ["a at 4k", "0.5 share"], ["b at 4k", "0.25 share"]]


def test_the_benchmarks_of_this_project_are_read() -> None:
    found, left = collect(Path(__file__).parents[2] / "recipes/benchmarks/results")
    assert left == []
    made = sections(found)
    assert sum(len(section.files) for section in made) == len(found)
    curves = {section.title: section.measured[0].curve("stock") for section in made if section.charts}
    assert curves["Passkey retrieval"][2048] == 1.0
    assert any(section.measured[0].kind == "perplexity" for section in made if section.charts)


def test_no_content_of_a_result_file_breaks_it(tmp_path: Path) -> None:
    numbers: list[Any] = [True, -1, 0, 1e308, 10**400, float("nan")]
    odd = [*numbers, None, "", "x" * 300, [], [1], {}, {"stock": 1}, {"2048": "x"}]
    rng, read = random.Random(0), 0
    for _ in range(400):
        data = json.loads(json.dumps(rng.choice([passkey(), ppl(), by_method({"niah": 0.5}, depth=0.25)])))
        for _ in range(rng.randint(1, 3)):
            place: Any = data
            while True:
                key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
                if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.2:
                    break
                place = place[key]
            place[key] = copy.deepcopy(rng.choice(odd))
        (tmp_path / "a.json").write_text(json.dumps(data))
        with contextlib.suppress(ValueError):
            Console(file=io.StringIO()).print(terminal(sections(collect(tmp_path)[0]), []))
            read += 1
    assert 50 < read < 350, "some are read, some refused"
