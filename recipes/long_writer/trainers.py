"""TRL's trainers with the mixins of hf_longctx, made when they are asked for; that of DPO is recipes/long_dpo's."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from hf_longctx import SequenceParallelMixin
from hf_longctx.text.tokens import CHAT_TEMPLATES
from hf_longctx.training import LossWeightingMixin
from hf_longctx.upstream.installing import check_packages
from recipes.by_trl import TRL
from recipes.clock import ClockMixin
from recipes.long_writer.curriculum import ShortFirstMixin

TRAINS = TRL, CHAT_TEMPLATES  # what every training needs


class Trainers(NamedTuple):
    """A config and a trainer of each kind, and what data sets are made of."""

    sft: tuple[Any, Any]
    grpo: tuple[Any, Any]
    dataset: Any


@cache
def trainers() -> Trainers:
    """The trainers.

    Raises:
        ImportError: TRL is not installed.
    """
    check_packages(TRAINS)
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    class WriterSFTTrainer(ShortFirstMixin, ClockMixin, LossWeightingMixin, SequenceParallelMixin, SFTTrainer):
        """On packs: short answers first, by tokens or by answers, and documents do not see each other."""

    class WriterGRPOTrainer(ClockMixin, GRPOTrainer):
        """By a clock."""

    return Trainers(
        sft=(SFTConfig, WriterSFTTrainer),
        grpo=(GRPOConfig, WriterGRPOTrainer),
        dataset=Dataset,
    )
