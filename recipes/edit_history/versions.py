"""The versions of a file: from git, or from one file to another, one change at a time."""

from __future__ import annotations

import difflib
import subprocess
from pathlib import Path


def from_git(file: Path, most: int) -> list[str]:
    """The last `most` versions of a file in its git repository, oldest first; renames are followed."""
    git = ["git", "-C", str(file.resolve().parent)]
    log = [*git, "log", "--follow", f"-{most}", "--format=%H", "--name-only", "--", file.name]
    lines = [line for line in _run([*log]).splitlines() if line]
    pairs = list(zip(lines[::2], lines[1::2], strict=True))  # a commit, and the file's name in it
    if not pairs:
        raise SystemExit(f"{file} has no history: expected a file that git tracks.")
    return [_run([*git, "show", f"{commit}:{name}"]) for commit, name in reversed(pairs)]


def from_two(old: str, new: str) -> list[str]:
    """`old`, then its versions while blocks of lines that differ become those of `new`, one block after the other."""
    a, b = old.splitlines(keepends=True), new.splitlines(keepends=True)
    versions, done = [old], list(a)
    shift = 0
    for kind, start, end, other, other_end in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind != "equal":
            done[start + shift : end + shift] = b[other:other_end]
            shift += (other_end - other) - (end - start)
            versions.append("".join(done))
    return versions


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
