"""The arguments of a forward under the switch: which are refused, and what of the others goes to the model's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...upstream.caches import cache_in
from .answers import Share
from .chance import Walked
from .documents import IGNORED, PADDING, next_labels
from .interface import NAME

# arguments that are read here, and not handed on as they are
READ = (
    *("input_ids", "inputs_embeds", "attention_mask", "position_ids", "labels", "shift_labels", "num_items_in_batch"),
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "use_cache", "return_dict"),
)
REFUSED = ("output_hidden_states", "output_attentions", "output_router_logits", "logits_to_keep")


def check_arguments(model: nn.Module, walked: Walked, given: dict[str, Any], tokens: Any) -> None:
    """ValueError for arguments with which the forward would not be that of one process."""
    name = type(model).__name__
    if not isinstance(tokens, Tensor) or tokens.dim() < 2:
        raise ValueError(
            f"{name} under SequenceParallel: expected input_ids or inputs_embeds of the whole batch, (B, T)."
        )
    if not tokens.shape[:2].numel():
        raise ValueError(f"{name} under SequenceParallel: a batch of {tuple(tokens.shape[:2])} has no tokens.")
    for argument in ("labels", "shift_labels"):
        labels = given.get(argument)
        if labels is not None and labels.shape != tokens.shape[:2]:
            raise ValueError(
                f"{argument} of the shape {tuple(labels.shape)}: expected {tuple(tokens.shape[:2])}, one for each "
                f"token of the whole batch."
            )
    for argument, x in given.items():
        if argument in READ or not isinstance(x, Tensor) or not x.is_floating_point():
            continue
        if x.dim() > 2 and x.shape[:2] != tokens.shape[:2]:
            raise ValueError(
                f"{argument} of the shape {tuple(x.shape)}: under SequenceParallel a model is given texts alone. "
                f"Train on pictures and sound under DDP or FSDP2 alone."
            )
    if cache_in(given) is not None or given.get("use_cache"):
        raise ValueError(
            f"{name} under SequenceParallel has no cache: leave out past_key_values and use_cache=True. To generate, "
            f"leave the `with` block, or undo the patch."
        )
    for argument in REFUSED:
        if given.get(argument):
            raise ValueError(
                f"{argument}={given[argument]!r}: under SequenceParallel a model answers with its loss and what it "
                f"says of each token. Leave it out."
            )
    other = {str(layer.config._attn_implementation) for layer in walked.attending} - {NAME}
    if other:
        raise RuntimeError(
            f"attn_implementation was changed to {other.pop()!r} under SequenceParallel, and would see this rank's "
            f"tokens only. Undo the patch first, and apply it again afterwards."
        )
    dropping = walked.attention_dropout if model.training else None
    if dropping:
        raise ValueError(f"{dropping}, which SequenceParallel does not support in training. Set it to 0.")


def labels_of(given: dict[str, Any], share: Share, marks_BT: Tensor) -> dict[str, Any]:
    """Labels of the next token, shifted before they are shared; and how many there are in the group's batch."""
    shifted_BT = given.get("shift_labels")
    if shifted_BT is None:
        shifted_BT = next_labels(given["labels"].to(share.device), marks_BT)
    items = given.get("num_items_in_batch")
    if items is None:
        items = ((shifted_BT != IGNORED) & (marks_BT != PADDING)).sum()
    items = divisor_of(items)
    labels = share.take(shifted_BT) if share.rows else torch.full((1, 1), IGNORED, device=share.device)
    return {"labels": labels, "shift_labels": labels, "num_items_in_batch": items}


def divisor_of(items: Tensor | float) -> Tensor | float:
    """What a sum over targets is divided by: a batch without any has the loss 0 and no gradient, not nan.

    Trainer divides their number by the processes that share a batch, so it may be below 1.
    """
    if isinstance(items, Tensor):
        return items.where(items > 0, torch.ones_like(items))
    return items if items > 0 else 1


def part_of(x: Any, share: Share) -> Any:
    """An argument of the model's forward: what is said of each token is shared too."""
    return share.take(x) if isinstance(x, Tensor) and x.dim() >= 2 and x.shape[:2] == share.shape else x


def answer_as_asked(answer: Any, model: nn.Module, given: dict[str, Any]) -> Any:
    """A model's output, or the tuple of its fields where the arguments or the config say so."""
    return_dict = given.get("return_dict")
    if return_dict is None:
        return_dict = getattr(model.config, "return_dict", True)
    return answer if return_dict else answer.to_tuple()


def named(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names."""
    return dict(zip(inspect.signature(function).parameters, args, strict=False)) | kwargs if args else kwargs
