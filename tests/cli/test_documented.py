"""README and the guides say of the commands what `--help` says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from hf_longctx.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "model_cards").glob("*.md"))]
TREE: Any = typer.main.get_command(app)


def commands(group: Any = TREE, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        if not isinstance(command, TyperGroup):  # `plan` is a command, and has another
            yield (*path, name), command


COMMANDS = dict(commands())


def mentioned(text: str) -> Iterator[tuple[str, ...]]:
    """The words after each `hf-longctx`, to the end of its code or line."""
    for words in re.findall(r"hf-longctx ([^`\n]+)", text):
        yield tuple(re.sub(r"[\[\]()]", " ", words.partition("#")[0].partition("|")[0]).split())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_commands_and_options_in_documents_exist(path: Path) -> None:
    for words in mentioned(path.read_text(encoding="utf-8")):
        found = [name for name in COMMANDS if words[: len(name)] == name]
        if not found or found == [("serve",)]:  # COMMAND in a sentence; serve's options are transformers' own
            assert found or words[0] not in TREE.commands, words
            continue
        known = {option for parameter in COMMANDS[found[0]].params for option in parameter.opts}
        used = {re.match(r"--[\w-]+", word)[0] for word in words if re.match(r"--[\w-]+", word)}
        assert used <= known | {"--help"}, (words, used - known)


def test_readme_has_every_command() -> None:
    there = set(mentioned((ROOT / "README.md").read_text(encoding="utf-8")))
    assert [name for name in COMMANDS if not any(words[: len(name)] == name for words in there)] == []
