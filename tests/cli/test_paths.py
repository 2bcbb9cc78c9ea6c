"""An option that takes a path refuses an empty one, which pathlib would take for the current folder."""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from typer.models import OptionInfo
from typer.testing import CliRunner

from hf_longctx.cli.main import app
from hf_longctx.cli.options import PLACES
from hf_longctx.cli.plan_train import plan_train


def commands(of: typer.Typer = app) -> Iterator[Callable[..., Any]]:
    for command in of.registered_commands:
        assert command.callback
        yield command.callback
    for group in of.registered_groups:
        assert group.typer_instance
        yield from commands(group.typer_instance)


def options_with_paths(command: Callable[..., Any]) -> Iterator[str]:
    hints = get_type_hints(command, include_extras=True)
    for name in inspect.signature(command).parameters:
        kind, *about = get_args(hints[name]) or [hints[name]]
        option = next((one for one in about if isinstance(one, OptionInfo)), None)
        if option is not None and re.search(r"\bPath\b", str(kind)):
            yield from option.param_decls or [f"--{name.replace('_', '-')}"]


def test_every_option_with_a_path_is_known() -> None:
    assert {option for command in (*commands(), plan_train) for option in options_with_paths(command)} == PLACES


@pytest.mark.parametrize("words", [["--out", ""], ["--out="]])
def test_an_empty_path_is_refused_and_nothing_is_written(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["extend", "MODEL", "--method", "lm_infinite", "--force"], ["save", "MODEL", "--force"], ["demo"]):
        found = CliRunner().invoke(app, [*command, *words])
        assert found.exit_code == 2
        assert "--out is empty: expected a path." in found.output
    assert not any(tmp_path.iterdir())


def test_a_current_folder_that_was_deleted_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def deleted() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("os.getcwd", deleted)
    found = CliRunner().invoke(app, ["save", "MODEL", "--out", "x"])
    assert found.exit_code == 2
    assert "the current folder was deleted" in found.output
