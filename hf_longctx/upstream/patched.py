"""Copies of installed packages with the changes of the ledger, for PYTHONPATH. What is installed stays as it is.

Files are shared with the installation by hard links; changed ones are written as new files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from ..storage.files import advice, write_whole
from .diffs import changed, hunks
from .ledger import FIXED, PACKAGE, Defect, chosen, defect, defects

# all in one process, also those that are alone where the defect is present
CHECK = """
import dataclasses, json, sys
from hf_longctx.upstream.ledger import defect
from hf_longctx.upstream.scripts import check
found = {one: check(dataclasses.replace(defect(one), alone=False)) for one in sys.argv[1:]}
print(json.dumps({one: dataclasses.astuple(state) for one, state in found.items()}))
"""
NOTE = "hf_longctx_patches.json"  # in the folder of the copies: the entries, in order


def changes_in(folder: str | os.PathLike[str]) -> list[str]:
    """The numbers of the entries whose changes a folder of copies has; none where there is no such folder.

    Raises:
        ValueError: The folder holds something else, too, or its list of them is damaged.
    """
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return []
    if not (folder / NOTE).is_file():
        raise ValueError(f"{folder}: expected a new folder, or one of `hf-longctx patches apply`. Choose another one.")
    try:
        numbers = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except ValueError:
        numbers = None
    if not isinstance(numbers, list) or not set(map(str, numbers)) <= defects().keys():
        raise ValueError(f"{folder / NOTE}: expected the numbers of entries. Remove {folder}, and apply them again.")
    # the folder is replaced and removed as a whole
    made = {NOTE, *(defect(number).package for number in numbers)}
    if other := next((path.name for path in folder.iterdir() if path.name not in made), None):
        raise ValueError(f"{folder} also holds {other!r}, expected copies of packages alone. Move it elsewhere.")
    return numbers


def apply_changes(
    given: str | int | Iterable[str | int], folder: str | os.PathLike[str], *, checked: bool = True
) -> list[str]:
    """Copy the packages at fault into a folder, with the changes of these entries and of those that it has already.

    Args:
        given: Numbers or names of entries that have a `change.diff`.
        folder: A new folder, or one that this function has made.
        checked: Run the entries' scripts in a process with the copies, and keep nothing unless the defects are gone.

    Returns:
        The numbers of the entries whose changes it has now.

    Raises:
        ValueError: An entry has no change, is fixed in the installed version, or was written for another version; or
            the folder holds something else; or the defect is still there. The folder is as it was.
        OSError: It cannot be written; the folder is as it was.
    """
    wanted = chosen(given)
    for one in wanted:
        if not (one.folder / "change.diff").is_file():
            raise ValueError(f"{one.id} ({one.title}) has no change to apply: it is of kind {one.kind!r}.")
        if one.seen.get(one.version) == FIXED:
            raise ValueError(f"{one.id}: {one.package} {one.version}, which is installed, is right already.")
    numbers = sorted({*changes_in(folder), *(one.id for one in wanted)})
    _build(numbers, Path(folder), check=[one.id for one in wanted] if checked else [])
    return numbers


def undo_changes(given: str | int | Iterable[str | int] | None, folder: str | os.PathLike[str]) -> list[str]:
    """Take changes out of a folder of copies, in any order; the folder goes with the last one.

    Args:
        given: Numbers or names of entries; None for all.
        folder: Made by `apply_changes`.

    Returns:
        The numbers of the entries whose changes it still has.

    Raises:
        ValueError: The folder has not the change of an entry. The folder is as it was.
    """
    there = changes_in(folder)
    gone = there if given is None else [one.id for one in chosen(given)]
    for number in gone:
        if number not in there:
            raise ValueError(f"{number}: {folder} has not this change. It has: {', '.join(there) or 'none'}.")
    left = [number for number in there if number not in gone]
    if left:
        _build(left, Path(folder), check=[])
    elif there:
        shutil.rmtree(folder)
    return left


def _build(numbers: list[str], folder: Path, check: list[str]) -> None:
    """Make the folder as a whole, and only then put it in the place of the old one."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            made = Path(scratch, "made")
            made.mkdir()
            for number in numbers:
                _change(defect(number), made)
            (made / NOTE).write_text(json.dumps(numbers), encoding="utf-8")
            _check(check, made)
            if folder.exists():
                os.replace(folder, Path(scratch, "old"))
            os.replace(made, folder)
    except OSError as error:
        raise OSError(error.errno, f"could not write {folder} ({error.strerror or error}). {advice(error)}") from error


def _change(one: Defect, made: Path) -> None:
    if not (made / one.package).exists():
        # found by its metadata: an import may find a copy that was made before
        if not one.version:
            raise ValueError(f"{one.id}: expected {one.package}, and it is not installed.")
        installed = Path(str(metadata.distribution(one.package).locate_file(one.package)))
        if not installed.is_dir():
            raise ValueError(
                f"{one.id}: {one.package} {one.version} is not among the installed packages but in a folder of its own "
                f"(pip install -e). Apply {one.folder.name}/change.diff there, with `git apply`."
            )
        shutil.copytree(installed, made / one.package, copy_function=_link)
    diff = (one.folder / "change.diff").read_text(encoding="utf-8")
    texts = {hunk.file: (made / hunk.file).read_text(encoding="utf-8") for hunk in hunks(diff)}
    try:
        after = changed(texts, diff)
    except ValueError as error:
        raise ValueError(f"{one.id}, {one.package} {one.version}: {error}") from error
    for name, text in after.items():
        write_whole(made / name, text.encode())


def _check(numbers: list[str], made: Path) -> None:
    """ValueError unless the defects are gone in a process that imports the copies."""
    if not numbers:
        return
    path = [str(made), str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", CHECK, *numbers],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stdout.splitlines()[-1:] if done.returncode == 0 else []
    if not last:
        raise ValueError(f"with the changes, {', '.join(numbers)} cannot be looked for:\n{done.stderr[-1000:]}")
    for number, (state, told) in json.loads(last[0]).items():
        if state != FIXED:
            one = defect(number)
            raise ValueError(
                f"{number}: with its change on {one.package} {one.version}, the script says: {state}, {told}. A change "
                f"is kept only where the defect is then gone, and this one was made for the tested release."
            )


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or a file of another user
        shutil.copy2(source, target)
