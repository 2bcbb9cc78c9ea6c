"""What is preferred to what, as tokens: right answers to spoilt ones, and the best of some answers to a random other.

Tokens, not texts: a chat template would end an answer that did not end by itself, and what is wrong with it were gone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_longctx.evaluation.tasks.long_output import NEVER_ENDS, dpo_row
from hf_longctx.evaluation.writing import has_loops
from recipes.clock import sooner
from recipes.long_writer.data import WORDS, Fitting, asked, made, parts, prompt_ids
from recipes.long_writer.decode import LateError, Sampling, Written, write
from recipes.long_writer.length_pairs import Sampled, length_pairs
from recipes.long_writer.loops import cut_loop, loop_start

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("hf_longctx")
Pair = dict[str, list[int]]  # of TRL's columns


def verified(tokenizer: PreTrainedTokenizerBase, config: dict[str, Any], found: Fitting) -> None:
    """Right answers to problems, each with a spoilt one; what "never ends" has no end token."""
    # other problems than those of the fine-tuning
    for number, problem in enumerate(made(config, config["dpo"]["problems"], seed=1)):
        row = dpo_row(problem, seed=config["seed"])
        prompt, chosen = parts(tokenizer, {"messages": [*row["prompt"], *row["chosen"]]})
        _, rejected = parts(tokenizer, {"messages": [*row["prompt"], *row["rejected"]]})
        if row["fault"] == NEVER_ENDS:
            del rejected[-1]
        _add(found, f"{problem.task}, pair {number}", prompt, chosen, rejected)


def by_length(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    config: dict[str, Any],
    found: Fitting,
    *,
    until: float | None = None,
    enough: float | None = None,
) -> dict[str, int]:
    """Of answers that the model samples, the best by S_l and a worse one, with figures of how many there were.

    Args:
        model: In eval mode, on its device.
        tokenizer: Its own.
        config: The recipe's.
        found: Pairs are added to it.
        until: As `write` takes it.
        enough: `time.monotonic()` after which no more are sampled: prompts whose answers are not all there are left
            out, and said in the log.
    """
    own, ends = config["dpo"], end_ids(model, tokenizer)
    rows = [row for _, row in asked(config["chats"]) if room(config, row[WORDS]) <= own["longest"]][: own["prompts"]]
    prompts = [prompt_ids(tokenizer, row["messages"][:-1]) for row in rows]
    often = own["samples"]
    limits = [room(config, row[WORDS]) for row in rows]
    sampling = Sampling(config["score"]["temperature"], config["score"]["top_p"], config["seed"])
    try:
        written: Sequence[Written | None] = write(
            model,
            [prompt for prompt in prompts for _ in range(often)],
            [limit for limit in limits for _ in range(often)],
            ends,
            sampling,
            tokens_at_once=config["score"]["tokens_at_once"],
            until=sooner(until, enough),
        )
    except LateError as late:
        if until is not None and time.monotonic() >= until:
            raise
        written = late.written
    without = loops = left = better_longer = 0
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        some = [one for one in written[number * often : (number + 1) * often] if one is not None]
        if len(some) < often:
            left += 1
            continue
        texts = [text_of(tokenizer, one) for one in some]
        # a text that is fine for most of its words, and loops behind them, is as little to be preferred
        looping = [has_loops(text) or loop_start(one.ids) is not None for text, one in zip(texts, some, strict=True)]
        sample = Sampled(row["messages"][:-1], row[WORDS], texts, [one.ended for one in some], looping)
        pairs, none = length_pairs([sample], seed=config["seed"] + number, loops=own["rejected"] == "loops")
        without += none
        for pair in pairs:
            chosen, rejected = pair["answers"]
            loops += looping[rejected]
            worse = cut_loop(some[rejected].ids, own["loop_tokens"])
            better_longer += len(some[chosen].ids) > len(worse)
            _add(found, f"prompt {number}", prompt, some[chosen].ids, worse)
    found_by = {
        "prompts": len(rows),
        "prompts without a worse answer": without,
        "rejected answers that loop": loops,
        "rejected answers that are shorter": better_longer,
    }
    if left:
        logger.warning("%d of %d prompts have no pair: there was no time to sample their answers.", left, len(rows))
        found_by["prompts without time"] = left
    return found_by


def room(config: dict[str, Any], words: int) -> int:
    """Tokens that may be written where so many words are asked for: three times as many."""
    return round(config["score"]["tokens_per_word"] * words)


def text_of(tokenizer: PreTrainedTokenizerBase, written: Written) -> str:
    """What was written, without its end token."""
    return str(tokenizer.decode(written.ids, skip_special_tokens=True))


def end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer: the tokenizer's, and what the model generates until."""
    own = model.generation_config.eos_token_id
    found = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    if not found:
        raise ValueError(f"{type(tokenizer).__name__} has no eos_token: no answer could end. Set the tokenizer's.")
    return found


def _add(found: Fitting, name: str, prompt: list[int], chosen: list[int], rejected: list[int]) -> None:
    row: Pair = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    found.add(row, len(prompt) + max(len(chosen), len(rejected)), name)
