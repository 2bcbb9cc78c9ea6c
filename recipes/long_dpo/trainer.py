"""The DPO trainer of the recipes: TRL's, for pairs that are texts or tokens, in one process or shared by several."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from hf_longctx import SequenceParallelMixin
from recipes.by_trl import check_trl
from recipes.clock import Clock, ClockMixin
from recipes.long_dpo.pairs import IDS


class Needed(NamedTuple):
    """TRL's config, its trainer with the mixins of hf_longctx, the same by a clock, and what data sets are made of."""

    config: Any
    trainer: Any
    timed: Any
    dataset: Any


@cache
def needed() -> Needed:
    """The trainers, made when they are asked for.

    Raises:
        ImportError: TRL is not installed.
    """
    check_trl()
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class PairsDPOTrainer(SequenceParallelMixin, DPOTrainer):
        """The two answers of a pair are documents; processes share them."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            # pairs of tokens are what stock makes of texts, except that it would end every answer
            return dataset if IDS[0] in dataset.column_names else super()._prepare_dataset(dataset, *args, **kwargs)

    class TimedDPOTrainer(ClockMixin, PairsDPOTrainer):
        """By a clock, in one process."""

    return Needed(DPOConfig, PairsDPOTrainer, TimedDPOTrainer, Dataset)


def dpo_trainer(
    model: Any,
    reference: Any,
    tokenizer: Any,
    pairs: Sequence[dict[str, Any]],
    arguments: Any,
    *,
    held: Sequence[dict[str, Any]] = (),
    clock: Clock | None = None,
) -> Any:
    """A trainer of `model` on pairs, of which none is cut.

    Args:
        model: In float32; the trainer moves it.
        reference: The same model again. Without it TRL loads what config._name_or_path names, which knows nothing of
            GGUF files and methods.
        tokenizer: Their own.
        pairs: As `read_pairs` gives them.
        arguments: A DPOConfig whose parallelism_config says how processes share a pair.
        held: Pairs for evaluation.
        clock: That ends the training, and that its learning rate goes by.
    """
    found = needed()
    data = {"train_dataset": found.dataset.from_list(list(pairs))}
    if held:
        data["eval_dataset"] = found.dataset.from_list(list(held))
    kind, more = (found.trainer, {}) if clock is None else (found.timed, {"clock": clock})
    return kind(model=model, ref_model=reference, args=arguments, processing_class=tokenizer, **data, **more)
