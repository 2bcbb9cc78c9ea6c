"""Answers for GRPOTrainer from a copy of the model, through TRL's `rollout_func`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from recipes.long_writer.data import prompt_ids
from recipes.long_writer.decode import Sampling, write
from recipes.long_writer.loops import cut_loop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEMORY = 0.5  # of what is free, for the pages of continuous batching; training needs the rest


class Rollouts:
    """Called by GRPOTrainer with the prompts of a step, each as often as it is to be answered.

    Answers are written by a copy of the model in `dtype`, which takes over the weights before each step; by `decode`.

    Args:
        model: That is trained.
        tokenizer: Its own.
        ends: Tokens that end an answer.
        dtype: Of the copy.
        tokens_at_once: See `decode.write`.
        loop_tokens: See `loops.cut_loop`, which cuts answers that did not end; None: they are whole.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        ends: set[int],
        dtype: torch.dtype,
        tokens_at_once: int,
        loop_tokens: int | None = None,
    ) -> None:
        self.tokenizer, self.ends, self.tokens_at_once = tokenizer, ends, tokens_at_once
        self.loop_tokens = loop_tokens
        self.writer = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
        self.writer.config.use_cache = True

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        """What TRL asks for: prompts and answers as tokens, and the log-probability of each token."""
        self._take_weights(trainer.accelerator.unwrap_model(trainer.model))
        args, ids = trainer.args, [prompt_ids(self.tokenizer, prompt) for prompt in prompts]
        # the same draws when a training is resumed
        sampling = Sampling(args.temperature, args.top_p, args.seed + trainer.state.global_step)
        limits = [args.max_completion_length] * len(ids)
        answers, log_probs = self._write(ids, limits, sampling)
        answers = [one if one and one[-1] in self.ends else cut_loop(one, self.loop_tokens) for one in answers]
        if log_probs is not None:
            log_probs = [own[: len(one)] for own, one in zip(log_probs, answers, strict=True)]
        return {"prompt_ids": ids, "completion_ids": answers, "logprobs": log_probs}

    def _write(
        self, ids: list[list[int]], limits: list[int], sampling: Sampling
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Tokens of the answers, and the log-probability of each, if it is known."""
        written = write(self.writer, ids, limits, self.ends, sampling, tokens_at_once=self.tokens_at_once)
        return [one.ids for one in written], [one.log_probs for one in written]

    @torch.no_grad()
    def _take_weights(self, model: Any) -> None:
        self.writer.to(next(model.parameters()).device)
        theirs = dict(model.named_parameters())
        for name, own in self.writer.named_parameters():
            own.copy_(theirs[name])


class ContinuousRollouts(Rollouts):
    """The same by transformers' continuous batching.

    GRPOTrainer's own call of it casts the weights that are trained to bfloat16, in which steps of a small rate are
    lost, and fails in mixed precision: accelerate turns what a model returns to float32, a paged cache among it.
    """

    def _write(
        self, ids: list[list[int]], limits: list[int], sampling: Sampling
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        from transformers.generation import ContinuousBatchingConfig

        ends = sorted(self.ends)
        how = GenerationConfig(
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=max(limits),
            eos_token_id=ends,
            pad_token_id=ends[0],
        )
        batching = ContinuousBatchingConfig(seed=sampling.seed, max_memory_percent=MEMORY)
        found = self.writer.generate_batch(ids, generation_config=how, continuous_batching_config=batching)
        errors = [one.error for one in found.values() if one.error]
        if errors or len(found) < len(ids):
            raise RuntimeError(
                f"continuous batching answered {len(found) - len(errors)} of {len(ids)} prompts"
                f"{': ' + str(errors[0]) if errors else ''}. Sample answers otherwise (grpo: generation: graphs)."
            )
        # its log-probabilities are those among the tokens of top_p
        return [list(one.generated_tokens) for one in found.values()], None
