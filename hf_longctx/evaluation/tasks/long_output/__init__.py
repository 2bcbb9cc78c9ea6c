"""Long answers that a program makes and checks line by line: for evaluation, SFT, DPO and GRPO (the idea of LongProc).

Problems are made by seed, at any length from 60 to 32,768 tokens of answer. Nothing that a model wrote is executed or
evaluated: lines are compared, arithmetic is read by a regular expression, code is parsed.
"""

from ....storage.files import write_json_lines as write_rows
from .base import LongTask, Problem, Verdict
from .catalogue import long_tasks, make, problems, split_of
from .measured import METRICS, eval_sample
from .reward import reward, verifier_reward
from .rows import dpo_row, grpo_row, sft_row
from .spoil import FAULTS, NEVER_ENDS, spoilt
from .verify import verify

__all__ = [
    "FAULTS",
    "METRICS",
    "NEVER_ENDS",
    "LongTask",
    "Problem",
    "Verdict",
    "dpo_row",
    "eval_sample",
    "grpo_row",
    "long_tasks",
    "make",
    "problems",
    "reward",
    "sft_row",
    "split_of",
    "spoilt",
    "verifier_reward",
    "verify",
    "write_rows",
]
