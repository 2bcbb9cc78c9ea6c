"""Rooms stand on floors: each imports only from rooms below it, at import time and inside functions alike."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hf_longctx

PACKAGE = Path(hf_longctx.__file__).parent
# from the ground up; a room may import what stands before it
FLOORS = [
    "near",
    "settings",
    "patch",
    "console",
    "storage",
    "upstream",
    "anatomy",
    "registry",
    "method",
    "ops",
    "text",
    "rope",
    "cache",
    "parallel",
    "attention",
    "methods",
    "editing",
    "sharing",
    "generation",
    "streaming",
    "evaluation",
    "hub",
    "models",
    "hooks",
    "planning",
    "training",
    "clip",
    "doctor",
    "cli",
    "__main__",
]


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """The rooms that a file imports from, wherever the statement stands, with its line."""
    package = ["hf_longctx", *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            whole = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            whole = [base if len(base) > 1 else [*base, alias.name] for alias in node.names]
        else:
            continue
        yield from ((path[1], node.lineno) for path in whole if path[0] == "hf_longctx" and len(path) > 1)


def test_no_room_imports_from_a_floor_above() -> None:
    upwards = []
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":  # the lazy table of public names
            continue
        for other, line in imports(file):
            # the package's own names (`from .. import LMInfinite`) hide which room is meant
            above = other not in FLOORS or FLOORS.index(other) > FLOORS.index(room)
            if above and room != other and other != "__version__":
                upwards.append(f"{file.relative_to(PACKAGE)}:{line} {room} -> {other}")
    assert not upwards, "\n".join(upwards)


def test_every_room_has_its_floor_and_the_package_few_loose_modules() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(FLOORS)
    assert (
        len([path for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")]) <= 6
    )  # those are Python's names


def test_ranks_share_attention_as_arithmetic_only() -> None:
    found = {other for file in (PACKAGE / "parallel").glob("*.py") for other, _ in imports(file)}
    assert found == {"ops", "parallel"}


def test_attention_as_arithmetic_does_without_transformers() -> None:
    code = "import hf_longctx.ops.attend, hf_longctx.parallel, sys; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_holds_two_ideas() -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in PACKAGE.rglob("*.py")}
    assert {str(file): n for file, n in lengths.items() if n > 350} == {}
    assert sorted(lengths.values())[len(lengths) // 2] <= 90


def test_modules_of_a_room_import_each_other_in_one_direction() -> None:
    """No circle between modules either, also not one that is hidden in a function."""
    graph: dict[str, set[str]] = {}
    files = {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}
    for name, file in files.items():
        package = file.relative_to(PACKAGE).parts[:-1]
        graph[name] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
                base = [part for part in base if part]
                for alias in node.names:
                    for path in (".".join([*base, alias.name]), ".".join(base)):
                        if path in files and path != name:
                            graph[name].add(path)
                            break

    def reaches(start: str) -> set[str]:
        found: set[str] = set()
        todo = [start]
        while todo:
            for other in graph[todo.pop()] - found:
                found.add(other)
                todo.append(other)
        return found

    assert [name for name in graph if name in reaches(name)] == []
