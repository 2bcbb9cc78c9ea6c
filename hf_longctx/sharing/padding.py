"""Logits processors and stopping criteria see the padding of shorter questions first in each row, as in a stock batch.

After a shared prefix the padding is between prefix and question, since the prefix' keys are the first of every row. A
logits processor would take it for a word there: it would penalise it and break n-grams in two.
"""

# B rows of the caller, N rows that are decoded (beams and samples of each), L tokens of prefix and questions
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.stopping_criteria import MaxLengthCriteria, MaxTimeCriteria

_MAKERS = ("_get_logits_processor", "_get_stopping_criteria")


@contextmanager
def padding_in_front(base: Any, mask_BL: Tensor) -> Iterator[None]:
    """Inside, the processors and criteria of `base.generate`, the caller's too, see rows that begin with their padding.

    Args:
        base: The model whose `generate` runs.
        mask_BL: Of prefix and questions; 0 for padding, anywhere in a row.
    """
    if bool((mask_BL != 0).all()):
        yield
        return
    move = _Move(mask_BL)
    make_processors, make_criteria = (getattr(base, name) for name in _MAKERS)

    def processors(**given: Any) -> LogitsProcessorList:
        kwargs = dict(given.get("model_kwargs") or {})
        if kwargs.get("attention_mask") is not None:  # by which transformers tells padding from a prompt
            given["model_kwargs"] = {**kwargs, "attention_mask": move(kwargs["attention_mask"])}
        if given.get("encoder_input_ids") is not None:
            given["encoder_input_ids"] = move(given["encoder_input_ids"])
        made = make_processors(**given)
        return LogitsProcessorList([_Processors(made, move)]) if made else made

    def criteria(**given: Any) -> StoppingCriteriaList:
        return StoppingCriteriaList([_moved(one, move) for one in make_criteria(**given)])

    before = {name: vars(base)[name] for name in _MAKERS if name in vars(base)}
    vars(base).update(zip(_MAKERS, (processors, criteria), strict=True))
    try:
        yield
    finally:
        for name in _MAKERS:
            del vars(base)[name]
        vars(base).update(before)


class _Move:
    """Moves the padding among the first L tokens of each row to its front."""

    def __init__(self, mask_BL: Tensor) -> None:
        self.order_BL = (mask_BL != 0).long().argsort(dim=1, stable=True)

    def __call__(self, ids_NL: Tensor) -> Tensor:
        order_NL = self.order_BL.repeat_interleave(len(ids_NL) // len(self.order_BL), 0).to(ids_NL.device)
        length = order_NL.shape[1]
        return torch.cat([ids_NL[:, :length].gather(1, order_NL), ids_NL[:, length:]], 1)


class _Processors(LogitsProcessor):
    def __init__(self, stock: LogitsProcessorList, move: _Move) -> None:
        self.stock, self.move = stock, move

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.stock(self.move(input_ids), scores)


class _Criterion(StoppingCriteria):
    def __init__(self, stock: StoppingCriteria, move: _Move) -> None:
        self.stock, self.move = stock, move

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return self.stock(self.move(input_ids), scores, **kwargs)


def _moved(criterion: Any, move: _Move) -> Any:
    # `generate` looks for an `eos_token_id`; these read the last token, a length or a clock
    if hasattr(criterion, "eos_token_id") or isinstance(criterion, (MaxLengthCriteria, MaxTimeCriteria)):
        return criterion
    return _Criterion(criterion, move)
