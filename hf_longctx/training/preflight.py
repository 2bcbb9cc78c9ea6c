"""The preflight of trainers: a batch that will not fit is refused before the step that would run out of memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..patch import applied, unwrap
from ..planning.train import Preflight, preflight
from .one_device import OneDeviceMixin

# names of what changes memory, and how `planning.train.TrainingRun` calls its settings
SWITCHES = {
    "sequence_parallel": {"degree": "degree", "kind": "kind"},
    "training_memory": {"offload": "keep_on_host"}
    | {name: name for name in ("chunked_loss", "tile", "remat", "fused_norms")},
}
STOCK = {"degree": 1, "kind": "stock", "chunked_loss": False}


class PreflightMixin(OneDeviceMixin):
    """Put before a Trainer, refuses a batch that does not fit, with the numbers and the cheapest setting that would.

    Each batch that is longer than those before it is looked at.

    Args:
        preflight: False: no batch is refused.
    """

    def __init__(self, *args: Any, preflight: bool = True, **kwargs: Any) -> None:
        if not isinstance(preflight, bool):
            raise ValueError(f"preflight={preflight!r}: expected True, or False to refuse no batch.")
        self._preflight: Preflight | bool | None = preflight
        super().__init__(*args, **kwargs)
        # now: what is applied later puts a forward of its own before that of TRL
        self._fused_head = has_fused_head(self.model)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As in Trainer, after a look at the length of the batch."""
        if self._preflight is True:  # now: everything that changes the model has been applied
            shard = bool(self.accelerator.is_fsdp2)
            settings = _settings(self.model, self.accelerator.num_processes)
            settings["chunked_loss"] |= self._fused_head
            self._preflight = preflight(self.model, self.args, shard=shard, **settings)
        tokens = inputs.get("input_ids")
        if isinstance(self._preflight, Preflight) and isinstance(tokens, Tensor):
            self._preflight.check(tokens.numel())
        return super().training_step(model, inputs, num_items_in_batch)


def has_fused_head(model: Any) -> bool:
    """Whether a trainer of TRL has put its head on the model, which computes the loss without logits, in chunks."""
    code = getattr(getattr(unwrap(model).forward, "__func__", None), "__code__", None)
    return code is not None and "fused_lm_head" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _settings(model: Any, processes: int) -> dict[str, Any]:
    """What the patches on a model say of its memory, where so many processes train it."""
    found: dict[str, Any] = dict(STOCK)
    for patch in applied(model):
        for ours, theirs in SWITCHES.get(getattr(patch.method, "name", ""), {}).items():
            found[theirs] = getattr(patch.method, ours)
    if found["degree"] == "auto":  # all processes share a batch, in groups
        found["degree"] = processes
    if found["kind"] == "hybrid":  # of one host: Ulysses
        found["kind"] = "ulysses"
    return found
