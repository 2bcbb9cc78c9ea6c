"""What needs no model answers at once: help, versions, the list of methods, and what is misspelt."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from tests.children import python_path

# arguments -> exit code and what is said
COMMANDS = {
    "--help": (0, "Usage"),
    "--version": (0, "transformers"),
    "methods": (0, "arxiv.org/abs/2308.16137"),
    "methods --json": (0, '"LMInfinite"'),
    "eval --help": (0, "--lengths"),
    "clip stretch --help": (0, "--ratio"),
    "evla": (2, "Did you mean"),
    "eval model --task ppl --lenghts 4": (2, "--lengths"),
    "generate model --prompt hi --method lm_infinit": (2, "Did you mean 'lm_infinite'"),
    "plan model --length 1k --method lm_infinite --set n_locl=5": (2, "Did you mean 'n_local'"),
}
HEAVY = "torch", "transformers", "numpy", "peft", "accelerate", "huggingface_hub", "matplotlib"
CODE = f"""
import sys
from hf_longctx.cli.main import app
try:
    app()
finally:
    print("loaded", [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def run(arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """A command in a new process, and its CPU seconds, user and system."""
    environment = {**os.environ, "PYTHONPATH": python_path(), "COLUMNS": "120"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", CODE, *arguments.split()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("arguments", COMMANDS)
def test_commands_without_a_model_import_nothing_slow(arguments: str) -> None:
    code, said = COMMANDS[arguments]
    done, _ = run(arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert "loaded []" in done.stderr


@pytest.mark.parametrize("arguments", ["--help", "--version", "methods", "evla"])
def test_commands_without_a_model_take_little_time(arguments: str) -> None:
    # the least of three: other processes cost a command more, never less
    assert min(run(arguments)[1] for _ in range(3)) <= 0.6, "CPU seconds; torch and transformers alone need 3"
