"""Reinforcement by verifiers, lengths and endings, by TRL's GRPOTrainer.

    python -m recipes.long_writer.train_grpo --model long-writer/sft/model --minutes 9

See README.md beside this file.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import torch

from hf_longctx.evaluation.tasks.long_output import grpo_row
from hf_longctx.hub import load
from recipes.cards import one_card
from recipes.clock import Clock
from recipes.long_writer.command import command
from recipes.long_writer.data import WORDS, Fitting, asked, made, prompt_ids
from recipes.long_writer.pairs import end_ids, room
from recipes.long_writer.rewards import Reward
from recipes.long_writer.rollouts import ContinuousRollouts, Rollouts
from recipes.long_writer.stage import arguments, keep, run
from recipes.long_writer.trainers import TRAINS, trainers
from recipes.resuming import check_fresh

logger = logging.getLogger("hf_longctx")
ROLLOUTS = {"graphs": Rollouts, "continuous": ContinuousRollouts}  # ways to generate that are not TRL's own
# what the report has of each step, and how TRL calls it
CURVE = {
    "reward": "reward",
    "spread": "spread",
    "equal groups": "equal_groups",
    "ended": "ended",
    "length": "completions/mean_length",
    "repeated": "repeated",
}


def prompts(tokenizer: Any, config: dict[str, Any]) -> tuple[Fitting, int]:
    """Problems, and rows that ask for a number of words, whose prompts leave room for the longest answer.

    Rows that ask for more than the longest answer holds are left out: all answers would be cut, and nothing be learnt.
    Their number is given too.
    """
    own = config["grpo"]
    answer = own["training"]["max_completion_length"]
    found = Fitting(config["context"])
    rows = [(f"{one.task}, problem", grpo_row(one)) for one in made(config, own["problems"], own["tokens"], seed=2)]
    writing = list(asked(config["chats"]))
    # of the room for three times the words, half
    short = [(name, row) for name, row in writing if room(config, row[WORDS]) <= 2 * answer]
    rows += [(name, {"prompt": row["messages"][:-1], WORDS: row[WORDS]}) for name, row in short[: own["prompts"]]]
    for name, row in rows:
        same = {"prompt": row["prompt"], "problem": row.get("problem"), WORDS: row.get(WORDS)}
        found.add(same, len(prompt_ids(tokenizer, row["prompt"])) + answer, name)
    return found, len(writing) - len(short)


def train(
    config: dict[str, Any],
    *,
    model: str | None = None,
    seconds: float | None = None,
    stop: float | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train `model`, or the config's, and save it in the folder grpo of `out`; the report."""
    own, out = config["grpo"], Path(config["out"]) / "grpo"
    (arguments_of, trainer), begun = trainers().grpo, time.monotonic()
    check_fresh(out, resume)
    start, group = model or config["model"], own["training"]["num_generations"]
    loaded, tokenizer = load(start, dtype=torch.float32, device="cpu")
    data, more_asked = prompts(tokenizer, config)
    found, ends = data.report("prompts") | {"ask for more than fits": more_asked}, end_ids(loaded, tokenizer)
    reward = Reward(ends, own["rewards"], group)
    functions, weights = reward.functions()

    def make(clock: Clock) -> Any:
        rows = own["prompts_per_step"] * group
        args = arguments_of(
            **arguments(own["training"], out, own["steps"], rows, own["answers"], config["seed"]),
            reward_weights=weights,
            **({"cache_implementation": "static"} if own["generation"] == "static" else {}),
        )
        more: dict[str, Any] = {}
        if own["generation"] in ROLLOUTS:
            os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
            dtype = getattr(torch, config["save_dtype"]) if torch.cuda.is_available() else torch.float32
            kind = ROLLOUTS[own["generation"]]
            at_once, kept = config["score"]["tokens_at_once"], own["loop_tokens"]
            more["rollout_func"] = kind(loaded, tokenizer, ends, dtype, at_once, kept)
        return trainer(
            model=loaded,
            args=one_card(args),
            reward_funcs=functions,
            train_dataset=trainers().dataset.from_list(data.rows),
            processing_class=tokenizer,
            clock=clock,
            **more,
        )

    report = run(make, "grpo", config, str(start), found, seconds=seconds, begun=begun, resume=resume, stop=stop)
    steps = curve(report["logs"])
    found_groups = equal_groups(steps, own["prompts_per_step"])
    return keep(out, report | {"data": found, "curve": steps, "groups": found_groups})


def curve(logs: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """Per step: reward, its spread inside groups, groups of equal rewards, ended answers, tokens, repetition."""
    return {name: [log.get(theirs) for log in logs] for name, theirs in CURVE.items()}


def equal_groups(steps: dict[str, list[float | None]], prompts_per_step: int) -> dict[str, int]:
    """How many groups there were, and how many had nothing to learn from; said where these were over half."""
    shares = [share for share in steps["equal groups"] if share is not None]
    groups, equal = len(shares) * prompts_per_step, round(sum(shares) * prompts_per_step)
    if 2 * equal > groups:
        logger.warning(
            "%d of %d groups had answers of equal rewards, from which nothing is learnt. Begin with a model that "
            "earns some reward, such as that of the fine-tuning, or with shorter answers (grpo: tokens).",
            equal,
            groups,
        )
    return {"groups": groups, "of equal rewards": equal}


train.packages = packages = TRAINS  # of the stage, and of the command

if __name__ == "__main__":
    command(__doc__, train)
