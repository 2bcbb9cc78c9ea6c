"""Problems as rows of data sets: for SFT, DPO and GRPO in TRL's conversational forms."""

from __future__ import annotations

import json
from typing import Any

from .base import Problem
from .spoil import spoilt


def sft_row(problem: Problem) -> dict[str, Any]:
    """A chat whose answer is right; `pack` and TRL's SFTTrainer read it."""
    return {"messages": [*_asked(problem), *_said(problem.answer)], "task": problem.task}


def dpo_row(problem: Problem, *, fault: str | None = None, seed: int = 0) -> dict[str, Any]:
    """A pair of the right answer and a spoilt one, for DPOTrainer. Arguments and errors as `spoilt`."""
    text, fault = spoilt(problem, fault, seed=seed)
    pair = {"prompt": _asked(problem), "chosen": _said(problem.answer), "rejected": _said(text)}
    return {**pair, "task": problem.task, "fault": fault}


def grpo_row(problem: Problem) -> dict[str, Any]:
    """A prompt with the problem as a JSON text, which `verifier_reward` reads, for GRPOTrainer.

    The text is one, not an object: a data set would fill the facts of all tasks into every row.
    """
    return {"prompt": _asked(problem), "problem": json.dumps(problem.to_dict()), "task": problem.task}


def _asked(problem: Problem) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem.prompt}]


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
