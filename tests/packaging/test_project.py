"""The project's own files agree with each other."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.benchmarks import __main__ as benchmarks
from recipes.benchmarks.tables import ROOT, documents, misses, render, table

README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
RESULT: dict[str, Any] = {
    "command": "python -m recipes.benchmarks.x",
    "commit": "0123456789abcdef",
    "hardware": "one H100",
    "versions": {"torch": "2.13.0"},
    "model": "a model",
    "date": "2026-01-02T03:04:05+00:00",
    "rows": [
        {"what": "ratio", "value": 1.00234, "unit": "", "bar": "<= 1.005", "holds": True, "beside": {"stock": 40321.7}},
        {"what": "speed|up", "value": 9, "unit": "x", "bar": ">= 10", "holds": False, "why": "too slow", "beside": {}},
        {"what": "no bar", "value": None, "unit": "s", "bar": None, "holds": None, "beside": {"peer": 2}},
    ],
}


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_tables_are_rendered_from_the_committed_results(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert render(text) == text, "run `make tables`"


def test_table_shows_values_bars_and_reasons() -> None:
    lines = table(RESULT).splitlines()
    assert lines[1] == "| what | hf_longctx | stock | peer | bar |"
    assert lines[3] == "| ratio | 1.0023 | 40,322 | – | <= 1.005: holds |"
    assert lines[4] == "| speed\\|up | 9 x | – | – | >= 10: missed |"
    assert lines[5] == "| no bar | – | – | 2 | – |"
    assert "- speed|up: too slow" in lines
    assert "one H100; torch 2.13.0; 2026-01-02, commit 0123456789ab." in lines[-2]


def test_rendering_replaces_blocks_only_and_settles_at_once(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(RESULT))
    blocks = "<!-- table:one -->\nstale\n<!-- /table -->\nb\n<!-- table:none -->\n<!-- /table -->\n"
    text = f"a\n{blocks}    <!-- table:NAME -->\nc"
    once = render(text, tmp_path)
    assert "stale" not in once
    assert once.startswith("a\n<!-- table:one -->\n\n| what |")
    assert once.endswith("*Not measured yet.*\n<!-- /table -->\n    <!-- table:NAME -->\nc")
    assert render(once, tmp_path) == once


def test_check_lists_the_rows_that_miss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.json").write_text(json.dumps(RESULT))
    assert list(misses(tmp_path)) == ["one: speed|up: 9 x, bar >= 10 (too slow)"]
    assert benchmarks.main(["nonsense"]) == 2
    assert benchmarks.main(["check"]) == bool(list(misses()))
    assert capsys.readouterr().out


def test_results_name_no_folder_of_the_machine_they_come_from() -> None:
    for path in (ROOT / "recipes/benchmarks/results").glob("*.json"):
        assert not re.search(r'"[^"]*(/home/|/root/|/tmp/|/Users/)', path.read_text(encoding="utf-8")), path.name


def unlisted(readme: str) -> list[str]:
    """What the table of methods in a README lacks: rows of methods and procedures, and in a row its file."""
    import hf_longctx

    files = {name: f"{cls.__module__.replace('.', '/')}.py" for name, cls in hf_longctx.list_methods().items()}
    rows = {name: re.search(rf"^\| `{name}` \|.*", readme, re.MULTILINE) for name in files}
    return [name for name, file in files.items() if (row := rows[name]) is None or f"`{file}`" not in row[0]]


def test_readme_lists_every_method() -> None:
    assert unlisted(README) == [], "README's table lacks these, or the files in their rows"


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_links_and_pictures_exist(path: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


CARDS = [path for path in sorted((ROOT / "model_cards").glob("*.md")) if path.stem != "xl3m"]  # run with XL3M's tests


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.name)
def test_lines_of_cards_run_as_pasted(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny model, and nothing is pushed."""
    import hf_longctx
    from tests.tiny import logits_of, text, tiny, tokenizer

    blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    assert path.name == "README.md" or blocks, "how is it applied, saved and pushed?"
    if path.stem not in hf_longctx.list_methods() and path.name != "README.md":
        pytest.skip("not a method's card: its lines are run where its subject is tested")
    pushed: list[str] = []
    monkeypatch.setattr("transformers.PreTrainedModel.push_to_hub", lambda self, name: pushed.append(name))
    monkeypatch.setattr("hf_longctx.hub.load", lambda name: (tiny(), tokenizer()))
    monkeypatch.chdir(tmp_path)
    for code in blocks:
        names: dict[str, Any] = {}
        exec(code, names)
        if path.stem not in hf_longctx.list_methods():  # no method: it leaves nothing on the model
            assert not hf_longctx.applied(names["model"])
            continue
        method = names["patch"].method
        assert method.name == path.stem
        assert [p.method for p in hf_longctx.applied(names["model"])] == ([] if method.native else [method])
        with method.on(tiny()) as ours:
            assert torch.equal(logits_of(names["model"], text()), logits_of(ours, text()))
        assert pushed == [f"you/{folder.name}" for folder in tmp_path.iterdir()]


@pytest.mark.real_model
def test_readme_lines_run_as_pasted() -> None:
    pytest.importorskip("hf_longctx.methods.lm_infinite")
    from hf_longctx.hub import locate

    try:
        locate("smollm2-135m-instruct")
    except OSError as error:
        pytest.skip(f"the model cannot be had: {error}")
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert code.strip().splitlines()[-1].startswith("# ")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == code.strip().splitlines()[-1].removeprefix("# ")


def test_readme_lines_on_keeping_a_method_run_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hf_longctx
    from tests.tiny import tiny

    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "save_pretrained" in block]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": tiny()}
    exec(code, names)
    assert [p.method for p in hf_longctx.applied(names["model"])] == [names["patch"].method]


def test_every_block_of_a_document_is_run_by_a_test() -> None:
    """A new one goes into this list together with a test that runs it."""
    # here: README, editing, report, sharing, streaming; tests/generation/xl3m; tests/evaluation/test_guide.py;
    # tests/clip has one in test_stretch.py, two in test_pipelines.py and three in test_guide.py; tests/hub has hub in
    # test_guide.py and test_serve.py, and README's third in test_stranger.py; tests/parallel has two in test_guide.py
    # and one in test_trl.py; tests/training has packing in test_guide.py, three of training in memory/test_guide.py;
    # tests/planning/train has two of planning in test_guide.py
    run = {
        "README": 3,
        "clip": 6,
        "editing": 1,
        "evaluation": 5,
        "hub": 4,
        "packing": 6,
        "parallel": 3,
        "planning": 2,
        "report": 2,
        "segments": 1,
        "sharing": 1,
        "streaming": 1,
        "training": 3,
    }
    found = {name: len(re.findall(r"```python\n", text)) for name, text in {"README": README, **GUIDES}.items()}
    assert {name: blocks for name, blocks in found.items() if blocks} == run


@pytest.fixture
def printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the lines of a guide print, on a tiny model and a text file of its words."""
    from tests.tiny import tiny, tokenizer

    def run(guide: str, file: str, words: str, **instead: str) -> str:
        (code,) = re.findall(r"```python\n(.*?)```", GUIDES[guide], re.DOTALL)
        monkeypatch.setattr("hf_longctx.hub.load", lambda name: (tiny(), tokenizer()))
        monkeypatch.chdir(tmp_path)
        Path(file).write_text(words)
        for old, new in instead.items():  # the tiny tokenizer knows only its own words
            code = code.replace(f'"{old}"', f'"{new}"')
        exec(code, {})
        return capsys.readouterr().out

    return run


def test_lines_on_streaming_run_as_pasted(printed: Callable[..., str]) -> None:
    position, nbytes = printed("streaming", "book.txt", "w3 w4 w5\n" * 100).split()[-2:]
    assert int(position) == 300 + 100 + 2
    assert int(nbytes) > 0


def test_lines_on_editing_run_as_pasted(printed: Callable[..., str]) -> None:
    assert "EditReport(edits=1" in printed("editing", "module.py", "w3 w4 w5 w6\n" * 100, name="w7 w8")


def test_lines_on_reports_run_as_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, write = re.findall(r"```python\n(.*?)```", GUIDES["report"], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(write, {})
    exec(draw, {})
    assert capsys.readouterr().out.strip() == draw.rpartition("# ")[2].strip()
    assert "95 % (76–99)" in (tmp_path / "page/report.html").read_text()


RECIPES = [path for path in sorted((ROOT / "recipes").rglob("*.py")) if not path.stem.startswith("__")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_can_be_imported(path: Path) -> None:
    """Most need a GPU or hours to run, so that a name of the package that has moved would show only then."""
    importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def test_imports_inside_the_package_are_relative() -> None:
    for path in (ROOT / "hf_longctx").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(name.split(".")[0] == "hf_longctx" for name in names), f"{path}:{node.lineno}"


def test_every_guide_is_linked() -> None:
    assert all(f"docs/{name}.md" in README for name in GUIDES)


IMPORT = re.compile(r"^\s*(from (hf_longctx[\w.]*) import (?:\([^)]*\)|[^\n#]+))", re.MULTILINE)


@pytest.mark.parametrize("path", documents(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_reader_imports_from_the_package_and_its_rooms_only(path: Path) -> None:
    """No deeper than `from hf_longctx.<room> import`, and names that are there."""
    for line, module in IMPORT.findall(path.read_text(encoding="utf-8")):
        assert module.count(".") <= 1, f"{line}: export it from the room's __init__.py"
        exec(line, {})


def test_lines_on_sharing_run_as_pasted(printed: Callable[..., str]) -> None:
    assert "Prefix(60 tokens" in printed("sharing", "report.txt", "w3 w4 w5\n" * 20)


def test_version_is_the_same_everywhere() -> None:
    hf_longctx = pytest.importorskip("hf_longctx")
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared
    assert getattr(hf_longctx, "__version__", declared[1]) == declared[1]


def test_tested_versions_satisfy_the_floors() -> None:
    from packaging.requirements import Requirement

    tested = {r.name: r for r in map(Requirement, _lines("constraints.txt"))}
    block = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert block
    floors = [Requirement(text) for text in re.findall(r'"([^"]+)"', block[1])]
    assert len(floors) >= 8
    for floor in floors:
        pin = tested[floor.name.replace("-", "_")] if floor.name not in tested else tested[floor.name]
        (version,) = [spec.version for spec in pin.specifier]
        assert floor.specifier.contains(version), floor


def test_what_runs_on_the_floor_installs_the_floors_of_pyproject() -> None:
    declared = (ROOT / "pyproject.toml").read_text()
    for name in ("transformers", "torch"):
        floor = re.search(rf'"{name}>=([\d.]+)"', declared)
        assert floor
        for file in ("Makefile", ".github/workflows/ci.yml"):
            assert f"{name}=={floor[1]}.*" in (ROOT / file).read_text(), f"{file} installs another {name}"


def test_readme_names_the_versions_of_transformers_from_the_floor_to_the_pinned_one_or_newer() -> None:
    (sentence,) = re.findall(r"^Tested with transformers (.*)\.$", README, re.MULTILINE)
    named = [tuple(map(int, version.split("."))) for version in re.findall(r"\d+\.\d+", sentence)]
    floor = re.search(r'"transformers>=(\d+)\.(\d+)', (ROOT / "pyproject.toml").read_text())
    (pinned,) = [line for line in _lines("constraints.txt") if line.startswith("transformers==")]
    assert floor
    assert named == sorted(named)
    assert named[0] == (int(floor[1]), int(floor[2]))
    assert tuple(map(int, pinned.removeprefix("transformers==").split(".")[:2])) in named


def test_readme_names_the_environment_variables_of_the_package() -> None:
    read = {
        name
        for path in (ROOT / "hf_longctx").rglob("*.py")
        for name in re.findall(r"HF_LONGCTX_[A-Z_]+", path.read_text())
    }
    assert read == set(re.findall(r"HF_LONGCTX_[A-Z_]+", (ROOT / "README.md").read_text(encoding="utf-8")))


def test_readme_offers_a_reproducible_installation_and_the_tested_torch() -> None:
    (torch_pin,) = [line for line in _lines("constraints.txt") if line.startswith("torch==")]
    assert "`pip install . -c constraints.txt`" in README
    assert f"`pip install . {torch_pin}`" in README


def test_pre_commit_runs_the_tested_ruff() -> None:
    (ruff,) = [line for line in _lines("constraints.txt") if line.startswith("ruff==")]
    assert f"rev: v{ruff.removeprefix('ruff==')}\n" in (ROOT / ".pre-commit-config.yaml").read_text()


def test_ci_runs_what_the_readme_promises_and_tests_last() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    commands = [line for line in script.read_text().splitlines() if line.startswith("make ")]
    assert commands[-1] == "make test"
    assert {"make lint", "make types", "make demo-short"} <= set(commands)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {line.split()[1] for line in commands} | set(re.findall(r"`make ([a-z-]+)`", README)) <= targets


TOP = {
    *(".ci", ".github", ".gitignore", ".pre-commit-config.yaml", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
    *("Makefile", "README.md", "constraints.txt", "docs", "hf_longctx", "model_cards", "patches", "pyproject.toml"),
    *("recipes", "tests"),
}


def test_committed_files_are_small_and_nothing_lies_beside_the_rooms() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
    files = [name for name in names.split("\0") if name and (ROOT / name).is_file()]
    assert not [name for name in files if (ROOT / name).stat().st_size > 500_000]
    assert {name.partition("/")[0] for name in files} == TOP, "a file that a command has left behind?"


def _lines(name: str) -> list[str]:
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]
