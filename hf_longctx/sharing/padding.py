"""What looks back over the tokens of a shared prefix's questions sees their padding in front, where stock has it.

Shorter questions are padded behind the prefix, since its keys are the first of every row. A logits processor would take
that padding for a word between prefix and question: it would penalise it and break n-grams in two.
"""

# B rows that were given, N rows that are decoded (beams and samples of each), L tokens of prefix and questions
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
    """Inside, what `base.generate` makes of its settings and what the caller brings sees ids without padding between.

    Args:
        base: the model whose `generate` runs.
        mask_BL: of prefix and questions; 0 where there is padding, anywhere in a row.
    """
    if bool((mask_BL != 0).all()):
        yield
        return
    move = _Move(mask_BL)
    make_processors, make_criteria = (getattr(base, name) for name in _MAKERS)

    def processors(**given: Any) -> LogitsProcessorList:
        kwargs = dict(given.get("model_kwargs") or {})
        if kwargs.get("attention_mask") is not None:  # by which stock tells padding from a prompt
            given["model_kwargs"] = {**kwargs, "attention_mask": move(kwargs["attention_mask"])}
        if given.get("encoder_input_ids") is not None:
            given["encoder_input_ids"] = move(given["encoder_input_ids"])
        made = make_processors(**given)
        return LogitsProcessorList([_Processors(made, move)]) if made else made

    def criteria(**given: Any) -> StoppingCriteriaList:
        return StoppingCriteriaList([_seen(one, move) for one in make_criteria(**given)])

    before = {name: vars(base)[name] for name in _MAKERS if name in vars(base)}
    vars(base).update(zip(_MAKERS, (processors, criteria), strict=True))
    try:
        yield
    finally:
        for name in _MAKERS:
            del vars(base)[name]
        vars(base).update(before)


class _Move:
    """Moves the padding of rows to their front. What follows the first L tokens stays where it is."""

    def __init__(self, mask_BL: Tensor) -> None:
        self.order_BL = (mask_BL != 0).long().argsort(dim=1, stable=True)

    def __call__(self, ids_NL: Tensor) -> Tensor:
        order_NL = self.order_BL.repeat_interleave(len(ids_NL) // len(self.order_BL), 0).to(ids_NL.device)
        length = order_NL.shape[1]
        return torch.cat([ids_NL[:, :length].gather(1, order_NL), ids_NL[:, length:]], 1)


class _Processors(LogitsProcessor):
    def __init__(self, inner: LogitsProcessorList, move: _Move) -> None:
        self.inner, self.move = inner, move

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        moved: Any = self.move(input_ids)
        seen: Tensor = self.inner(moved, scores)
        return seen


class _Criterion(StoppingCriteria):
    def __init__(self, inner: StoppingCriteria, move: _Move) -> None:
        self.inner, self.move = inner, move

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        moved: Any = self.move(input_ids)
        return self.inner(moved, scores, **kwargs)


def _seen(criterion: Any, move: _Move) -> Any:
    # `generate` looks for an `eos_token_id`; these read the last token, a length or a clock
    if hasattr(criterion, "eos_token_id") or isinstance(criterion, (MaxLengthCriteria, MaxTimeCriteria)):
        return criterion
    return _Criterion(criterion, move)
