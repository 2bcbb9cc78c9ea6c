"""The scripts of the ledger: whether a defect is present here."""

from __future__ import annotations

import contextlib
import io
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from .ledger import FIXED, NOT_RUN, WRONG, Defect

CANNOT_RUN = 3  # the exit code of a script that cannot run here


@dataclass(frozen=True)
class Seen:
    """What a script found: "wrong", "fixed" or "not run", and its words."""

    state: str
    told: str = ""


def check(one: Defect) -> Seen:
    """Run an entry's script, in this process unless it has to be alone. A tiny model, seconds at most.

    Raises:
        Exception: The script's own, where it fails, as on a release that has not what it imports.
    """
    if not one.version:
        return Seen(NOT_RUN, f"{one.package} is not installed")
    return _check_alone(one) if one.alone else _check_here(one)


def attempt(one: Defect) -> Seen:
    """As `check`, but a script that fails says nothing of its defect, and keeps nobody from the other entries."""
    try:
        return check(one)
    except Exception as error:
        return Seen(NOT_RUN, f"its script fails here, {type(error).__name__}: {error}")


def present(one: Defect) -> Seen:
    """As `attempt`, but without running it where the ledger says that this version is right."""
    if one.seen.get(one.version) == FIXED:
        return Seen(FIXED, f"{one.package} {one.version} has it no longer")
    return attempt(one)


def _check_here(one: Defect) -> Seen:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), _unchanged():
            wrong = runpy.run_path(str(one.folder / "repro.py"))["defect"]()
    except SystemExit as stopped:
        if stopped.code != CANNOT_RUN:
            raise RuntimeError(f"it ended with {stopped.code!r} before its defect() was called") from stopped
        return Seen(NOT_RUN, said.getvalue().strip())
    return Seen(FIXED) if wrong is None else Seen(WRONG, str(wrong))


def _check_alone(one: Defect) -> Seen:
    script = str(one.folder / "repro.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    states = {0: FIXED, 1: WRONG, CANNOT_RUN: NOT_RUN}  # Python ends with 1 after an exception, too
    if done.returncode not in states or "Traceback" in done.stderr:
        raise RuntimeError(f"{script} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    state = states[done.returncode]
    lines = {FIXED: "", WRONG: done.stderr, NOT_RUN: done.stdout}[state].strip().splitlines()
    return Seen(state, lines[-1] if lines else "")


@contextlib.contextmanager
def _unchanged() -> Iterator[None]:
    """The state of torch that scripts change: random numbers, and what warns."""
    import warnings

    import torch

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
