"""Every entry of the ledger is whole, and its README lists it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_longctx.upstream.diffs import hunks
from hf_longctx.upstream.ledger import FIXED, KINDS, NOT_RUN, WRONG, Defect, defect, defects, ledger, tomllib
from hf_longctx.upstream.shims import SHIMS
from tests.ledger.record import readme, record

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = list(defects().values())
FIELDS = {"date", "package", "title", "kind", "symptom", "reason", "upstream", "needed_by", "seen"}
every = pytest.mark.parametrize("one", ENTRIES, ids=lambda one: one.folder.name)


@every
def test_an_entry_says_what_is_wrong_where_it_was_seen_and_what_would_cure_it(one: Defect) -> None:
    told = tomllib.loads((one.folder / "patch.toml").read_text(encoding="utf-8"))
    assert FIELDS <= told.keys() <= FIELDS | {"needs", "alone", "searched"}
    assert all(told[name].strip() for name in ("title", "symptom", "reason", "needed_by"))
    assert one.package == one.folder.parent.name
    assert one.kind in KINDS
    assert set(one.seen.values()) <= {WRONG, FIXED, NOT_RUN}
    # no version has it: the entry can go
    assert set(one.seen.values()) - {FIXED}, f"fixed in every release looked at: delete {one.folder.name}"
    assert told["upstream"].startswith("https://") or told["upstream"] in ("unreported", "not found", "fixed upstream")
    assert "searched" in told or told["upstream"] != "unreported"
    assert (one.folder / "upstream.md").read_text(encoding="utf-8").startswith("# ")


@every
def test_shims_and_diffs_bring_the_change_and_other_kinds_bring_none(one: Defect) -> None:
    change = one.folder / "change.diff"
    assert change.is_file() == (one.kind in ("shim", "diff"))
    assert (one.id in SHIMS) == (one.kind == "shim")
    if change.is_file():
        found = hunks(change.read_text(encoding="utf-8"))
        assert found
        assert all(hunk.file.startswith(f"{one.package}/") and hunk.old != hunk.new for hunk in found)


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@every
def test_a_script_stands_alone_and_can_be_imported_without_running(one: Defect) -> None:
    tree = ast.parse((one.folder / "repro.py").read_text(encoding="utf-8"))
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert "defect" in functions
    assert not any(name.partition(".")[0] == "hf_longctx" for name in imported(tree))
    assert ast.unparse(tree.body[-1]).startswith("if __name__ == '__main__':")


def test_numbers_are_unique_over_the_packages() -> None:
    folders = [path.parent.name for path in ledger().glob("*/*/patch.toml")]
    assert len(folders) == len({name.partition("-")[0] for name in folders}) == len(ENTRIES)
    assert all(re.fullmatch(r"\d{4}-[a-z0-9-]+", name) for name in folders)


def test_the_readme_lists_the_entries() -> None:
    text = (ledger() / "README.md").read_text(encoding="utf-8")
    assert readme(text, defects()) == text, "run `python -m tests.ledger --write`"


def test_what_was_seen_is_recorded_by_version_and_not_replaced_by_a_script_that_cannot_run(tmp_path: Path) -> None:
    from hf_longctx.upstream.ledger import read
    from hf_longctx.upstream.scripts import Seen

    folder = tmp_path / "torch" / "0001-name"
    folder.mkdir(parents=True)
    lines = ['package = "torch"', 'title = "a"', 'kind = "ours"', "[seen]", '"2.9.0" = "wrong"', ""]
    (folder / "patch.toml").write_text("\n".join(lines))
    one = read(folder)
    record(one, Seen(WRONG))
    record(one, Seen(NOT_RUN))
    assert read(folder).seen == {"2.9.0": WRONG, one.version: WRONG}
    record(one, Seen(FIXED))
    assert read(folder).seen == {"2.9.0": WRONG, one.version: FIXED}


def test_the_lines_of_the_readme_run(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ledger() / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(block, {})
    told = capsys.readouterr().out
    one = defects()["0002"]
    assert told == "['applied', 'applied']\n" or one.seen.get(one.version) != WRONG


@pytest.mark.parametrize("given", [2, "2", "0002", "packed-cache-leak", "0002-packed-cache-leak"])
def test_an_entry_is_found_by_its_number_and_by_its_name(given: str | int) -> None:
    assert defect(given).id == "0002"


def test_an_entry_that_is_not_there_is_said_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"'packed-cash-leak': no such entry. Did you mean 'packed-cache-leak'"):
        defect("packed-cash-leak")
    with pytest.raises(ValueError, match=r"'77': no such entry. `hf-longctx patches list`"):
        defect("77")


def test_a_wheel_takes_the_ledger_along() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]["patches"] == "hf_longctx/_ledger"
