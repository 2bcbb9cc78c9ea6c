"""`PendingLogits`: logits that are not computed yet, to which a model may do what is done to each by itself.

Models scale their logits (Cohere, Granite) or cap them (Gemma 2) between head and loss. What they do is written down
here, and done chunk by chunk when the loss is computed.
"""

# B rows, T tokens of a row, H hidden size, N = B T tokens, V vocabulary
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .log_probs import log_probs_of
from .tiles import Tiled, in_tiles

CHUNK = 2048  # tokens whose logits exist at a time
Step = Callable[[Tensor], Tensor]
# functions of torch, by name, that treat every logit by itself
POINTWISE = {"tanh", "mul", "multiply", "div", "divide", "true_divide", "add", "sub", "subtract", "clamp", "clip"}


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a head is asked for in place of logits: the log-probabilities of labels, after the steps of the model."""

    steps: tuple[Step, ...]
    labels_N: Tensor
    ignore_index: int

    def of(self, head: nn.Module, forward: Step, hidden_BTH: Tensor) -> Tensor:
        """(N,), from hidden states, in chunks."""

        def run(hidden_NH: Tensor, rows: slice) -> Tensor:
            logits_NV = forward(hidden_NH[None])[0]
            for step in self.steps:
                logits_NV = step(logits_NV)
            return log_probs_of(logits_NV, self.labels_N[rows], self.ignore_index)

        return in_tiles(Tiled(run, head, CHUNK), hidden_BTH.flatten(0, -2))


class PendingLogits:
    """What a head is about to give for hidden states.

    Args:
        head: The module that gives logits, or what is `Wanted` instead.
        hidden_BTH: Its input.
        steps: What is done to the logits, in order.
    """

    def __init__(self, head: nn.Module, hidden_BTH: Tensor, steps: tuple[Step, ...] = ()) -> None:
        self.head, self.hidden_BTH, self.steps = head, hidden_BTH, steps
        self.device, self.dtype = hidden_BTH.device, hidden_BTH.dtype

    def log_probs(self, labels_BT: Tensor, ignore_index: int) -> Tensor:
        """The log-probability of each label, (B, T); 0 where it is `ignore_index`."""
        wanted = Wanted(self.steps, labels_BT.to(self.device).flatten(), ignore_index)
        # a call of the head itself: FSDP2 may have its weights for the time of a call only
        found: Tensor = self.head(self.hidden_BTH, wanted)
        return found.view(labels_BT.shape)

    # -- what models do to their logits --------------------------------------------------------------------------------
    def _then(self, function: Callable[..., Any], *more: Any, **named: Any) -> PendingLogits:
        tensors = [x for x in (*more, *named.values()) if isinstance(x, Tensor)]
        if any(x.numel() > 1 or x.requires_grad for x in tensors):
            raise self._refusal("combines its logits with another tensor")
        return PendingLogits(self.head, self.hidden_BTH, (*self.steps, lambda x: function(x, *more, **named)))

    def _refusal(self, what: str) -> ValueError:
        return ValueError(
            f"chunked_loss: the model {what} before the loss, which cannot be done in chunks. Set "
            f"TrainingMemory(chunked_loss=False)."
        )

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Functions of torch that are given pending logits come here."""
        name, more = func.__name__.strip("_").removesuffix("_"), kwargs or {}
        at = [i for i, x in enumerate(args) if isinstance(x, cls)]
        if name not in POINTWISE or len(at) != 1:
            raise next(x for x in (*args, *more.values()) if isinstance(x, cls))._refusal(f"calls {name} of its logits")
        i = at[0]
        others = (*args[:i], *args[i + 1 :])
        return args[i]._then(lambda x, *rest, **named: func(*rest[:i], x, *rest[i:], **named), *others, **more)

    def __getattr__(self, name: str) -> Any:
        if name in POINTWISE or name in ("float", "to", "type"):
            return lambda *args, **kwargs: self._then(getattr(Tensor, name), *args, **kwargs)
        if name == "contiguous":
            return lambda: self
        if hasattr(Tensor, name) and not name.startswith("__"):
            raise self._refusal(f"uses .{name} of its logits")
        raise AttributeError(name)

    def __mul__(self, other: Any) -> PendingLogits:
        return self._then(torch.mul, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> PendingLogits:
        return self._then(torch.div, other)

    def __add__(self, other: Any) -> PendingLogits:
        return self._then(torch.add, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> PendingLogits:
        return self._then(torch.sub, other)

    def __getitem__(self, index: Any) -> Any:
        raise self._refusal("takes a part of its logits")
