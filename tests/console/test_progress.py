"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from rich.console import Console

from hf_longctx.console import progress
from hf_longctx.console.progress import Progress, bars_as_lines, counted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which stands still."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_comes_now_and_then_on_standard_error(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    out = io.StringIO()
    with Progress("tokens", 400_000, Console(file=out)) as shown:
        shown.describe("stock 4,096")
        for second in range(1, 101):
            clock[0] = second
            shown.advance(1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"stock 4,096: {n},000 of 400,000 tokens, {ago} so far, about {left} left"
        for n, ago, left in ((30, "30.0 s", "6 min"), (60, "60.0 s", "6 min"), (90, "2 min", "5 min"))
    ]
    assert out.getvalue() == "", "nothing between the results of a piped run"


def test_colour_that_is_forced_is_no_terminal(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    with Progress("tokens", 2, Console(file=out, force_terminal=True)) as shown:
        shown.advance(1)
    assert out.getvalue() == capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar_and_no_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    out = Terminal()
    with Progress("prompts", 2, Console(file=out, force_terminal=True, width=100)) as shown:
        shown.describe("stock")
        clock[0] = 100
        shown.advance(2)
    assert "stock" in out.getvalue()
    assert "2/2" in out.getvalue()
    assert capsys.readouterr().err == ""


def test_what_is_counted_is_what_was_used(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("tokens read") as shown:
        for piece in counted([[1, 2], [3]], shown):
            assert shown.done == (0 if piece == [1, 2] else 2)
            clock[0] += 40
    assert shown.done == 3
    assert capsys.readouterr().err.splitlines() == ["2 tokens read, 40.0 s so far", "3 tokens read, 80.0 s so far"]


def bars() -> dict[str, Any]:
    import huggingface_hub.utils
    import tqdm
    import tqdm.auto
    import transformers.utils.logging

    return {
        "tqdm": tqdm.tqdm,
        "tqdm.auto": tqdm.auto.tqdm,
        "transformers": transformers.utils.logging.tqdm,
        "huggingface_hub": huggingface_hub.utils.tqdm,
    }


@pytest.mark.parametrize("name", ["tqdm", "tqdm.auto", "transformers", "huggingface_hub"])
def test_other_libraries_draw_no_bars_without_a_terminal_and_long_ones_are_lines(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bar = bars()[name]
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)  # whatever other tests have set
    monkeypatch.setattr(sys.modules["huggingface_hub.utils.tqdm"], "progress_bar_states", {})
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with bars_as_lines():
        assert list(bar(range(3), desc="short", disable=False)) == [0, 1, 2]
        with bar(total=4, desc="also short") as shown:
            shown.update(4)
    assert sys.stderr.getvalue() == ""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with bars_as_lines():
        list(bar(range(2), desc="long"))
    lines = sys.stderr.getvalue().split("\n")
    assert lines[-1] == ""
    assert all(line.startswith("long: ") and "\r" not in line for line in lines[:-1])
    assert lines[-2].startswith("long: 2 of 2")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    list(bar(range(2), desc="after"))
    assert "after: 100%" in sys.stderr.getvalue(), "only for the length of the block"


def test_on_a_terminal_other_bars_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    import tqdm

    monkeypatch.setattr(sys, "stderr", Terminal())
    with bars_as_lines():
        list(tqdm.tqdm(range(2), desc="bar"))
    assert "bar: 100%" in sys.stderr.getvalue()  # type: ignore[attr-defined]
