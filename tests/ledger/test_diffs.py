"""The changes of the ledger: they cure what their scripts show, in copies, and what is installed stays as it is."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from hf_longctx.upstream import patched
from hf_longctx.upstream.diffs import Hunk, changed, hunks
from hf_longctx.upstream.ledger import FIXED, PACKAGE, defects
from hf_longctx.upstream.patched import NOTE, apply_changes, changes_in, undo_changes

ENTRIES = [one for one in defects().values() if one.kind in ("shim", "diff")]
DIFF = """--- a/src/package/file.py
+++ b/src/package/file.py
@@ -1,3 +1,4 @@
 a
-b
+B
+c

"""


def installed(package: str, name: str) -> Path:
    return Path(str(metadata.distribution(package).locate_file(package))) / name


def test_a_diff_is_read_and_applied_by_its_content_wherever_that_is() -> None:
    assert hunks(DIFF) == [Hunk("package/file.py", "a\nb\n\n", "a\nB\nc\n\n")]
    assert changed({"package/file.py": "x\ny\na\nb\n\nz\n"}, DIFF) == {"package/file.py": "x\ny\na\nB\nc\n\nz\n"}


@pytest.mark.parametrize(("text", "times"), [("a\n", 0), ("a\nb\n\na\nb\n\n", 2)])
def test_a_diff_whose_lines_are_not_there_once_is_an_error(text: str, times: int) -> None:
    with pytest.raises(ValueError, match=f"there {times} times, expected once. This version"):
        changed({"package/file.py": text}, DIFF)


def pinned(package: str) -> str:
    lines = (PACKAGE.parent / "constraints.txt").read_text().splitlines()
    return next(line.partition(";")[0].split("==")[1] for line in lines if line.startswith(f"{package}=="))


def test_with_their_changes_the_defects_are_gone(tmp_path: Path) -> None:
    """All changes at once, and their scripts in one process with the copies."""
    here = [one.id for one in ENTRIES if one.version == pinned(one.package) and one.seen[one.version] != FIXED]
    if len(here) < len(ENTRIES) / 2:
        pytest.skip("the changes are for the tested releases")
    assert apply_changes(here, tmp_path / "copies") == here


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            """print('{"0030": ["wrong", "off by 3"]}')""",
            r"0030: with its change on accelerate .* says: wrong, off by 3",
        ),
        (
            """print('{"0030": ["not run", "needs a GPU"]}')""",
            r"0030: with its change on .* says: not run, needs a GPU",
        ),
        ("raise NameError('cache')", r"with the changes, 0030 cannot be looked for:(.|\n)*NameError: cache"),
    ],
    ids=["wrong", "not run", "broken"],
)
def test_a_change_that_does_not_cure_is_not_kept(
    script: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a version where the change fits, and means something else."""
    monkeypatch.setattr(patched, "CHECK", script)
    with pytest.raises(ValueError, match=told):
        apply_changes(["0030"], tmp_path / "copies")
    assert list(tmp_path.iterdir()) == []


def test_what_is_installed_is_shared_and_stays_as_it_is(tmp_path: Path) -> None:
    name = "monkey_patching.py"
    before = installed("transformers", name).read_bytes()
    assert apply_changes(["0008"], tmp_path / "copies", checked=False) == ["0008"]
    copy = tmp_path / "copies" / "transformers"
    assert installed("transformers", name).read_bytes() == before != (copy / name).read_bytes()
    assert (copy / "cache_utils.py").read_bytes() == installed("transformers", "cache_utils.py").read_bytes()


def test_changes_are_undone_in_any_order_and_the_folder_goes_with_the_last(tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    apply_changes(["0030"], folder, checked=False)
    accelerator = folder / "accelerate" / "accelerator.py"
    changed_text = accelerator.read_text()
    apply_changes(["30"], folder, checked=False)  # again: nothing new
    assert changes_in(folder) == ["0030"]
    assert accelerator.read_text() == changed_text != installed("accelerate", "accelerator.py").read_text()
    with pytest.raises(ValueError, match=r"0008: .* has not this change. It has: 0030"):
        undo_changes(["0008"], folder)
    assert undo_changes(None, folder) == []
    assert not folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for call in (lambda: apply_changes(["0030"], tmp_path), lambda: undo_changes(None, tmp_path)):
        with pytest.raises(ValueError, match="expected a new folder, or one of `hf-longctx patches apply`"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_change_that_does_not_fit_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copies"
    apply_changes(["0030"], folder, checked=False)
    monkeypatch.setattr(
        "hf_longctx.upstream.patched.changed",
        lambda texts, diff: changed({"": ""}, DIFF.replace("package/file.py", "")),
    )
    with pytest.raises(ValueError, match=r"^0030, accelerate"):
        apply_changes(["0030"], folder, checked=False)
    assert [path.name for path in tmp_path.iterdir()] == ["copies"]
    assert (folder / NOTE).is_file()


@pytest.mark.parametrize("note", ["{", '{"0030": 1}', '["77"]'])
def test_a_damaged_list_of_changes_is_said(note: str, tmp_path: Path) -> None:
    (tmp_path / NOTE).write_text(note)
    for call in (lambda: apply_changes("0030", tmp_path), lambda: undo_changes(None, tmp_path)):
        with pytest.raises(ValueError, match=f"{NOTE}: expected the numbers of entries. Remove "):
            call()
    assert (tmp_path / NOTE).read_text() == note


def test_what_somebody_put_beside_the_copies_is_not_removed_with_them(tmp_path: Path) -> None:
    (tmp_path / NOTE).write_text('["0030"]')
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "train.py").write_text("mine")
    for call in (lambda: apply_changes("0030", tmp_path, checked=False), lambda: undo_changes(None, tmp_path)):
        with pytest.raises(ValueError, match=r"also holds 'train\.py', expected copies of packages alone"):
            call()
    assert (tmp_path / "train.py").read_text() == "mine"


def test_a_package_that_lies_elsewhere_or_is_not_installed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Editable:
        version = defects()["0030"].version

        def locate_file(self, name: str) -> Path:
            return tmp_path / "site-packages" / name

    monkeypatch.setattr(metadata, "distribution", lambda name: Editable())
    with pytest.raises(ValueError, match=r"in a folder of its own \(pip install -e\)"):
        apply_changes("0030", tmp_path / "copies")

    def none(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", none)
    with pytest.raises(ValueError, match="0030: expected accelerate, and it is not installed"):
        apply_changes("0030", tmp_path / "copies")
    assert list(tmp_path.iterdir()) == []


def test_an_entry_without_a_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0004 .* has no change to apply: it is of kind 'refused'"):
        apply_changes(["0004"], tmp_path / "copies")
    assert list(tmp_path.iterdir()) == []
