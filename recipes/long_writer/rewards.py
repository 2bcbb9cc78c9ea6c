"""What an answer is worth, as functions that TRL's GRPOTrainer calls; None is for rows that one cannot judge."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from typing import Any

from hf_longctx.evaluation.benchmarks.longwriter import length_score
from hf_longctx.evaluation.tasks.long_output import verifier_reward
from hf_longctx.evaluation.tasks.long_output.reward import text_of
from hf_longctx.evaluation.writing import repeated_ngrams

Rewards = list[float | None]


class Reward:
    """The parts of a reward; each is given the columns of the rows, and what was written.

    Args:
        ends: Tokens that end an answer.
        weights: Of the parts that count, by name.
        group: Answers to one prompt, which stand together.
    """

    def __init__(self, ends: Collection[int], weights: dict[str, float], group: int) -> None:
        self.ends, self.weights, self.group = set(ends), weights, group
        self._verify = verifier_reward(self.ends)

    def functions(self) -> tuple[list[Callable[..., Rewards]], list[float]]:
        """Reward functions and their weights. The last one, of weight 0, watches what the groups get."""
        parts = [getattr(self, name) for name in self.weights]
        return [*parts, self.watch], [*self.weights.values(), 0.0]

    def verifier(self, completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any) -> Rewards:
        """The verifier's reward, of the tasks."""
        rows = columns.get("problem") or [None] * len(completions)
        known = [i for i, one in enumerate(rows) if one is not None]
        of = self._verify([completions[i] for i in known], [completion_ids[i] for i in known], [rows[i] for i in known])
        found: Rewards = [None] * len(rows)
        for i, one in zip(known, of, strict=True):
            found[i] = one
        return found

    def length(self, completions: Sequence[Any], **columns: Any) -> Rewards:
        """S_l as published, 0 to 1, of rows that ask for a number of words. It pays for texts that were cut."""
        rows = columns.get("words") or [None] * len(completions)
        return [
            None if words is None else length_score(text_of(one), int(words))
            for one, words in zip(completions, rows, strict=True)
        ]

    def ended_length(self, completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any) -> Rewards:
        """S_l with 0 for an answer without its end token, as it is scored: what was cut earns nothing."""
        of = self.length(completions, **columns)
        return [one if one is None or self.ended(ids) else 0.0 for one, ids in zip(of, completion_ids, strict=True)]

    def repetition(self, completions: Sequence[Any], **_: Any) -> Rewards:
        """The share of 8-grams that came before, negative."""
        return [-repeated_ngrams(text_of(one)) for one in completions]

    def unended(self, completion_ids: Sequence[Any], **_: Any) -> Rewards:
        """-1 for an answer without its end token."""
        return [-float(not self.ended(ids)) for ids in completion_ids]

    def ended(self, ids: Sequence[int]) -> bool:
        """Did an answer end by itself?"""
        return bool(len(ids)) and int(ids[-1]) in self.ends

    def watch(self, log_metric: Callable[[str, float], None] | None = None, **given: Any) -> Rewards:
        """Nothing, of every answer; logs the spread of the reward inside groups, ended answers, and repetition."""
        parts = {name: getattr(self, name)(**given) for name in self.weights}
        n = len(given["completions"])
        totals = [sum(self.weights[name] * (one[i] or 0.0) for name, one in parts.items()) for i in range(n)]
        groups = [totals[i : i + self.group] for i in range(0, n, self.group)]
        spreads = [statistics.pstdev(group) for group in groups]
        equal = sum(spread < 1e-6 for spread in spreads)
        if log_metric is not None:
            log_metric("spread", statistics.fmean(spreads))
            log_metric("equal_groups", equal / len(groups))
            log_metric("ended", statistics.fmean(self.ended(ids) for ids in given["completion_ids"]))
            log_metric("repeated", -statistics.fmean(one or 0.0 for one in self.repetition(**given)))
        return [0.0] * n
