"""Answers for GRPOTrainer from `decode`, through TRL's `rollout_func`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from recipes.long_writer.data import prompt_ids
from recipes.long_writer.decode import Sampling, write

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Rollouts:
    """Called by GRPOTrainer with the prompts of a step, each as often as it is to be answered.

    Answers are written by a copy of the model in `dtype`, which takes over the weights before each step.

    Args:
        model: That is trained.
        tokenizer: Its own.
        ends: Tokens that end an answer.
        dtype: Of the copy.
        tokens_at_once: See `decode.write`.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, ends: set[int], dtype: torch.dtype, tokens_at_once: int
    ) -> None:
        self.tokenizer, self.ends, self.tokens_at_once = tokenizer, ends, tokens_at_once
        self.writer = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
        self.writer.config.use_cache = True

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        """What TRL asks for: prompts and answers as tokens, and the log-probability of each token."""
        self._take_weights(trainer.accelerator.unwrap_model(trainer.model))
        args, ids = trainer.args, [prompt_ids(self.tokenizer, prompt) for prompt in prompts]
        # the same draws when a training is resumed
        sampling = Sampling(args.temperature, args.top_p, args.seed + trainer.state.global_step)
        limits = [args.max_completion_length] * len(ids)
        written = write(self.writer, ids, limits, self.ends, sampling, tokens_at_once=self.tokens_at_once)
        return {
            "prompt_ids": ids,
            "completion_ids": [one.ids for one in written],
            "logprobs": [one.log_probs for one in written],
        }

    @torch.no_grad()
    def _take_weights(self, model: Any) -> None:
        self.writer.to(next(model.parameters()).device)
        theirs = dict(model.named_parameters())
        for name, own in self.writer.named_parameters():
            own.copy_(theirs[name])
