"""The chunked loss: a stock forward with labels gives the loss, while logits exist for a few tokens at a time.

The model's own forward runs. Its head answers with logits that are pending, and its loss function computes them chunk
by chunk; between the two a model does to its logits what it does.
"""

# B rows, T tokens of a row
from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import pad
from transformers.loss.loss_utils import ForCausalLMLoss

from ...parallel.model.arguments import answer_as_asked, divisor_of, named
from ...parallel.model.documents import IGNORED
from ...patch import Patch, unwrap
from .output import TokenLossOutput
from .pending import PendingLogits, Wanted

STATE = "_hf_longctx_chunked_loss"  # in the __dict__ of a model and of its head: their LossState
# arguments with which a forward asks for logits, or for the head of TRL, which has chunks of its own
OTHERWISE = ("logits_to_keep", "num_logits_to_keep", "fused_lm_head")


@dataclass(eq=False)
class LossState:
    """What a model with a chunked loss and its head share.

    Args:
        inner: The forward that the model had.
        head: The forward that its head had.
        logits: Answer as the stock model, with logits.
        pending: The forward that runs wants a loss, not logits.
        log_probs: What its loss function has found.
    """

    inner: Callable[..., Any]
    head: Callable[..., Any]
    logits: bool = False
    pending: bool = False
    log_probs: Tensor | None = None


def install_chunked_loss(root: Any, patch: Patch) -> None:
    """Change the forward of a model and of its head, and the model's loss function."""
    name = type(root).__name__
    head = root.get_output_embeddings()
    if head is None:
        raise ValueError(f"{name}: chunked_loss needs a language modelling head. Give the whole causal language model.")
    if STATE in vars(root):
        raise ValueError(f"{name}: its loss is chunked already. Leave chunked_loss out, or undo the other patch first.")
    if root.loss_function is not ForCausalLMLoss:
        raise ValueError(
            f"{name}: its loss function is {getattr(root.loss_function, '__name__', root.loss_function)}, and "
            f"chunked_loss computes that of causal language models (ForCausalLMLoss). Set "
            f"TrainingMemory(chunked_loss=False)."
        )
    state = LossState(root.forward, head.forward)
    for module, forward in ((root, _forward_of(root)), (head, types.MethodType(_head_forward, head))):
        patch.set(module, STATE, state)
        patch.set(module, "forward", forward)
    patch.set(root, "_loss_function", types.MethodType(_loss, root))


@contextmanager
def answering_with_logits(model: nn.Module) -> Iterator[None]:
    """Inside the block a model answers with logits, as the stock model does."""
    state: LossState | None = vars(unwrap(model)).get(STATE)
    if state is None:
        yield
        return
    before, state.logits = state.logits, True
    try:
        yield
    finally:
        state.logits = before


def _forward_of(model: Any) -> types.MethodType:
    stock = model.forward

    @functools.wraps(getattr(stock, "__func__", stock))
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _answer(self, vars(self)[STATE], named(stock, args, kwargs))

    return types.MethodType(forward, model)


def _answer(model: Any, state: LossState, given: dict[str, Any]) -> Any:
    if given.get("labels") is None or state.logits or any(given.get(name) for name in OTHERWISE):
        return state.inner(**given)
    _check_head(model, state)
    state.pending, state.log_probs = True, None
    try:
        out = state.inner(**{**given, "return_dict": True})
    finally:
        state.pending = False
    log_probs, state.log_probs = state.log_probs, None
    if log_probs is None:
        raise RuntimeError(
            f"{type(model).__name__} did not compute its loss from the logits of its head by its loss_function. Set "
            f"TrainingMemory(chunked_loss=False)."
        )
    fields = {name: out.get(name) for name in ("loss", "aux_loss", "hidden_states", "attentions")}
    answer = TokenLossOutput(**fields, log_probs=log_probs)
    return answer_as_asked(answer, model, given)


def _check_head(model: Any, state: LossState) -> None:
    """ValueError for a head that has come since: one that PEFT adapts or saves, or of another vocabulary."""
    head = model.get_output_embeddings()
    if vars(head).get(STATE) is not state:
        raise ValueError(
            f"chunked_loss: the head of {type(model).__name__} ({type(head).__name__}) is not the one that it had when "
            f"TrainingMemory was applied. Undo the patch, and apply TrainingMemory after what changes the head: PEFT "
            f"with the head in target_modules or modules_to_save, or resize_token_embeddings."
        )


def _head_forward(self: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    state: LossState = vars(self)[STATE]
    if args and isinstance(args[0], Wanted):
        return args[0].of(self, state.head, hidden)
    if not state.pending:
        return state.head(hidden, *args, **kwargs)
    _check_shards(self)
    return PendingLogits(self, hidden)


def _check_shards(head: Any) -> None:
    """A head is called twice, and FSDP2 has the weights of a group until the last of its modules was called."""
    group = head._get_fsdp_state()._modules if isinstance(head, FSDPModule) else ()
    if len(group) > 1:
        names = ", ".join(type(m).__name__.removeprefix("FSDP") for m in group)
        raise ValueError(
            f"chunked_loss: the head is in one group of fully_shard with other modules ({names}). Call "
            f"fully_shard(model.lm_head), or leave the head to fully_shard(model)."
        )


def _loss(
    self: Any,
    logits: Any,
    labels: Tensor,
    vocab_size: int | None = None,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORED,
    shift_labels: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """As `ForCausalLMLoss`, except that a batch without any label has the loss 0, where that has nan."""
    if not isinstance(logits, PendingLogits):
        more = {"num_items_in_batch": num_items_in_batch, "ignore_index": ignore_index, "shift_labels": shift_labels}
        loss: Tensor = ForCausalLMLoss(logits, labels, vocab_size, **more, **kwargs)
        return loss
    name, given = ("labels", labels) if shift_labels is None else ("shift_labels", shift_labels)
    _check_labels(name, given, logits.hidden_BTH.shape[:-1])
    shifted = pad(labels, (0, 1), value=ignore_index)[..., 1:] if shift_labels is None else shift_labels
    found_BT = logits.log_probs(shifted, ignore_index)
    vars(self)[STATE].log_probs = found_BT[..., :-1] if shift_labels is None else found_BT
    items = (shifted != ignore_index).sum() if num_items_in_batch is None else num_items_in_batch
    return -found_BT.sum() / divisor_of(items.to(found_BT.device) if isinstance(items, Tensor) else items)


def _check_labels(name: str, labels: Any, tokens: torch.Size) -> None:
    """ValueError unless there is one for each token: chunks would pair other ones, or leave tokens without any."""
    if isinstance(labels, Tensor) and labels.numel() == tokens.numel() and not _of_fractions(labels):
        return
    what = f"shape {tuple(labels.shape)} and {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
    raise ValueError(
        f"{name} of {what}: expected a tensor of whole numbers of shape {tuple(tokens)}, one for each token, with -100 "
        f"where none is to be predicted."
    )


def _of_fractions(labels: Tensor) -> bool:
    return labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
