"""recipes/interrupted.py: what Ctrl-C does to a command that does not ask for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

from recipes.interrupted import tell_in_one_line, told_in_one_line
from tests.children import python_path

THREAD = """
import sys, threading
from recipes.interrupted import told_in_one_line
sys.excepthook = told_in_one_line(sys.excepthook)
threading.Thread(target=threading.Event().wait).start()
print("a row")
raise KeyboardInterrupt(*sys.argv[1:])
"""


def interrupted(*words: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": python_path()}
    return subprocess.run([sys.executable, "-c", THREAD, *words], capture_output=True, text=True, env=env, timeout=60)


def test_it_ends_though_a_thread_waits_for_ever() -> None:
    """As one of torch.compile does, whose workers have got the same signal."""
    ended = interrupted()
    assert (ended.returncode, ended.stdout) == (-signal.SIGINT, "a row\n")
    assert ended.stderr == "interrupted; what was written by then stays.\n"
    assert interrupted("more was kept in x").stderr == "more was kept in x\n"


def test_other_errors_are_told_as_before() -> None:
    told = list[Any]()
    tell = told_in_one_line(lambda *error: told.append(error))
    error = ValueError("a book")
    tell(ValueError, error, None)
    assert told == [(ValueError, error, None)]


def test_who_imports_a_recipe_keeps_its_hook() -> None:
    before = sys.excepthook
    tell_in_one_line()  # this is no command of recipes/
    assert sys.excepthook is before
