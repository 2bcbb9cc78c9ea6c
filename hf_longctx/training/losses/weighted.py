"""A model whose loss weighs its tokens by `loss_weights`, an argument of its forward, while a block runs."""

# B rows, T tokens of a row, V vocabulary
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...parallel.model.documents import IGNORED

WEIGHTS = "loss_weights"  # (B, T), of the target that stands at each token


def weighted_loss(
    logits: Tensor, labels: Any, vocab_size: int, *, num_items_in_batch: Any, shift_labels: Tensor, loss_weights: Tensor
) -> Tensor:
    """The sum of weighted cross-entropies over `num_items_in_batch`, in float32."""
    flat = logits.float().view(-1, vocab_size)
    nll = cross_entropy(flat, shift_labels.flatten().to(flat.device), ignore_index=IGNORED, reduction="none")
    return (nll * loss_weights.flatten().to(nll.device)).sum() / torch.as_tensor(num_items_in_batch, device=nll.device)


@contextmanager
def weighing(model: Any) -> Iterator[None]:
    """Inside the block the loss of `model` is weighted, and log-probabilities of tokens, if it answers with them.

    Raises:
        RuntimeError: At its end, if the model has computed a loss in a way that asks neither.
    """
    weighted: list[str] = []
    stock_loss, stock_forward, own = model.loss_function, model.forward, vars(model).get("forward")

    def loss_function(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get(WEIGHTS) is None:
            return stock_loss(*args, **kwargs)
        weighted.append("loss")
        names = ("num_items_in_batch", "shift_labels", WEIGHTS)
        return _called(weighted_loss, args, kwargs, names)

    @functools.wraps(stock_forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        out = stock_forward(*args, **kwargs)
        log_probs_BT, weights_BT = getattr(out, "log_probs", None), kwargs.get(WEIGHTS)
        if log_probs_BT is not None and weights_BT is not None:  # TRL's head, which leaves the loss to its trainer
            weighted.append("log_probs")
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


def _called(function: Callable[..., Tensor], args: Any, kwargs: Any, names: tuple[str, ...]) -> Tensor:
    """Call a loss as models call theirs, of whose other arguments it knows nothing."""
    given = dict(zip(("logits", "labels", "vocab_size"), args, strict=False)) | kwargs
    return function(given["logits"], given["labels"], given["vocab_size"], **{name: given[name] for name in names})
