"""Writes what was seen into the ledger, and the table of its README."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.version import Version

from hf_longctx.upstream.ledger import KINDS, NOT_RUN, Defect, read
from hf_longctx.upstream.scripts import Seen

SECTION = "[seen]\n"
BLOCK = re.compile(r"(<!-- entries -->\n).*(<!-- /entries -->)", re.DOTALL)


def record(one: Defect, found: Seen) -> None:
    """Add a state to an entry's `patch.toml`. A script that cannot run here replaces nothing that was seen."""
    file = one.folder / "patch.toml"
    seen = dict(read(one.folder).seen)  # as it is now: another release may have been recorded meanwhile
    if found.state != NOT_RUN or one.version not in seen:
        seen[one.version] = found.state
    text = file.read_text(encoding="utf-8").partition(SECTION)[0]
    rows = "".join(f'"{version}" = "{seen[version]}"\n' for version in sorted(seen, key=Version))
    file.write_text(f"{text}{SECTION}{rows}", encoding="utf-8")


def readme(text: str, entries: dict[str, Defect]) -> str:
    """The README of the ledger with its table as the entries have it."""
    lines = ["| entry | package | defect | |", "|---|---|---|---|"]
    for one in entries.values():
        place = one.folder.relative_to(one.folder.parents[1]).as_posix()
        lines.append(f"| [{one.id}]({place}) | {one.package} | {one.title} | {one.kind} |")
    lines += ["", *(f"- {kind}: {meaning}" for kind, meaning in KINDS.items()), ""]
    return BLOCK.sub(lambda found: found[1] + "\n".join(lines) + found[2], text)


def write_readme(ledger: Path, entries: dict[str, Defect]) -> None:
    """Render the table of the ledger's README."""
    file = ledger / "README.md"
    file.write_text(readme(file.read_text(encoding="utf-8"), entries), encoding="utf-8")
