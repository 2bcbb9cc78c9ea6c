"""A model whose loss weighs its tokens by `loss_weights`, an argument of its forward, while a block runs."""

# B rows, T tokens of a row, V vocabulary
from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...parallel.model.documents import IGNORED

WEIGHTS = "loss_weights"  # (B, T), of the target that stands at each token


@contextmanager
def weighing(model: Any) -> Iterator[None]:
    """Inside the block the loss of `model` is weighted, and log-probabilities of tokens, if it answers with them.

    A model answers with them where its logits never exist: a chunked loss, TRL's head, which leaves the loss to its
    trainer. They are of the whole batch, also where ranks share it.

    Raises:
        RuntimeError: At its end, if the model has computed a loss in a way that asks neither.
    """
    weighted: list[str] = []
    stock_loss, stock_forward, own = model.loss_function, model.forward, vars(model).get("forward")

    def loss_function(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(("logits", "labels", "vocab_size"), args, strict=False)) | kwargs
        weights_BT = given.pop(WEIGHTS, None)
        if weights_BT is None or not isinstance(given["logits"], Tensor):
            return stock_loss(**given)
        weighted.append("loss")
        nll = _cross_entropies(given["logits"], given["shift_labels"], given["vocab_size"])
        return _mean(nll, weights_BT.flatten(), given["num_items_in_batch"])

    @functools.wraps(stock_forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        out = stock_forward(*args, **kwargs)
        log_probs_BT, weights_BT = getattr(out, "log_probs", None), kwargs.get(WEIGHTS)
        if log_probs_BT is not None and weights_BT is not None:
            weighted.append("log_probs")
            if out.loss is not None and kwargs.get("num_items_in_batch") is not None:
                out.loss = _mean(-log_probs_BT, weights_BT, kwargs["num_items_in_batch"])
            out.log_probs = log_probs_BT * weights_BT.to(log_probs_BT.device)
        return out

    model.loss_function, model.forward = loss_function, forward
    try:
        yield
    finally:
        model.loss_function = stock_loss
        if own is None:
            del model.forward
        else:
            model.forward = own
    if not weighted:
        raise RuntimeError(
            f"{type(model).__name__} does not compute its loss by model.loss_function, so its documents cannot weigh "
            f"the same. Leave out what replaces its loss (use_liger_kernel), or use loss_weighting='token'."
        )


def _cross_entropies(logits: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    flat = logits.float().view(-1, vocab_size)
    return cross_entropy(flat, targets.flatten().to(flat.device), ignore_index=IGNORED, reduction="none")


def _mean(nll: Tensor, weights: Tensor, items: Any) -> Tensor:
    """The sum of weighted cross-entropies over the divisor of the step."""
    return (nll * weights.to(nll.device)).sum() / torch.as_tensor(items, device=nll.device)
