"""Unified diffs applied by their content: the old lines are looked for wherever they are, and must be there once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hunk:
    """Lines of one file that become others."""

    file: str
    old: str
    new: str


def hunks(diff: str) -> list[Hunk]:
    """The hunks of a unified diff, with file names relative to where the package lies: no `a/`, no `src/`."""
    found: list[Hunk] = []
    file, old, new = "", "", ""

    def end() -> None:
        if old or new:
            found.append(Hunk(file, old, new))

    for line in diff.splitlines(keepends=True):
        if line.startswith("+++ "):
            file = line[4:].strip().removeprefix("b/").removeprefix("src/")
        elif line.startswith(("--- ", "@@")):
            end()
            old, new = "", ""
        else:
            text = line[1:] if line.strip("\r\n") else line  # an empty line may have lost its blank
            old += text if not line.startswith("+") else ""
            new += text if not line.startswith("-") else ""
    end()
    return found


def changed(texts: dict[str, str], diff: str) -> dict[str, str]:
    """The files that a diff changes, as they are after it.

    Args:
        texts: The files before it, by name; at least those that it changes.
        diff: A unified diff.

    Raises:
        ValueError: The old lines of a hunk are not there, or there more than once.
    """
    after: dict[str, str] = {}
    for hunk in hunks(diff):
        text = after.get(hunk.file, texts[hunk.file])
        times = text.count(hunk.old)
        if times != 1:
            raise ValueError(
                f"{hunk.file}: the lines that the diff changes are there {times} times, expected once. This version "
                f"of the package is another one than the diff was made for."
            )
        after[hunk.file] = text.replace(hunk.old, hunk.new)
    return after
