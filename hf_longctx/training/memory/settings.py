"""`TrainingMemory`: the rungs of the memory ladder that a model stands on in training."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel

from ...anatomy import find_decoder
from ...parallel.model.forward import STATE as SHARED
from ...patch import Patch, unwrap
from ...settings import Settings
from .checkpointing import install_kept_attention
from .chunked_loss import install_chunked_loss
from .mlp import install_tiles
from .norms import install_fused_norms

logger = logging.getLogger("hf_longctx")


@dataclass(frozen=True, kw_only=True)
class TrainingMemory(Settings):
    """Train on longer texts in the same memory, with the loss and gradients of the stock model.

    Each field is a rung by itself. They go together, with SequenceParallel (which is applied after them), DDP, FSDP2,
    PEFT and transformers' checkpointing, whose own `offload` puts hidden states on the host.

    Use when: training runs out of memory, or recomputes attention.

    Cannot: tile mixtures of experts, or keep attention under reentrant checkpointing.

    Costs: `chunked_loss` computes the head twice; `tile` the MLP once more where a layer goes on after it; `remat`
        keeps one more hidden state a layer, and `offload` copies it to the host and back.

    Args:
        chunked_loss: With labels, a forward answers with the loss and log-probabilities of tokens, without logits.
        tile: The MLP computes so many tokens at a time. None: all, which is faster where its inside is not the peak.
        remat: "attention": checkpointed layers compute all but attention again. None: all.
        offload: What `remat` keeps is kept in pinned memory of the host.
        fused_norms: RMS norms are one kernel of torch on a GPU, which is faster, keeps less, and rounds once in bf16.
    """

    name: ClassVar[str] = "training_memory"
    # what is asked of methods on a model; this one is in no config
    native: ClassVar[bool] = True
    decides_positions: ClassVar[bool] = False
    endless: ClassVar[bool] = False

    chunked_loss: bool = True
    tile: int | None = 8192
    remat: str | None = None
    offload: bool = False
    fused_norms: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile is not None and self.tile < 1:
            raise ValueError(f"tile={self.tile}: expected how many tokens an MLP computes at a time, or None for all.")
        if self.remat not in (None, "attention"):
            raise ValueError(f"remat={self.remat!r}: expected 'attention', or None.")
        if self.offload and self.remat is None:
            raise ValueError(
                "offload=True: it is for what remat='attention' keeps. For the hidden states of checkpointed layers, "
                "set gradient_checkpointing_kwargs={'offload': True} of transformers."
            )
        if not (self.chunked_loss or self.tile or self.remat or self.fused_norms):
            raise ValueError(
                "TrainingMemory: every rung is off. Set chunked_loss=True, tile=8192, remat='attention' or "
                "fused_norms=True."
            )

    def apply(self, model: nn.Module) -> Patch:
        """Change a model in memory, and return the `Patch` that undoes the change.

        Apply it before SequenceParallel, before DDP, FSDP2 or Accelerate wrap the model, and before or after PEFT.
        """
        root: Any = unwrap(model)
        if not isinstance(root, PreTrainedModel):
            raise ValueError(
                f"{type(root).__name__}: expected a model of transformers. Apply {self!r} before the model is wrapped "
                f"by DDP or another module."
            )
        if SHARED in vars(root):
            raise ValueError(f"Apply {self!r} before SequenceParallel, which is on the model already: undo that first.")
        decoder = find_decoder(root)
        patch = Patch(method=self, model=decoder)
        with patch.recording():
            if self.chunked_loss:
                install_chunked_loss(root, patch)
            if self.tile is not None:
                install_tiles(decoder, self.tile, patch)
            if self.remat is not None:
                install_kept_attention(root, decoder, self.offload, patch)
            if self.fused_norms:
                install_fused_norms(decoder, patch)
        logger.info("applied %r to %s", self, type(root).__name__)
        return patch

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[nn.Module]:
        """`with settings.on(model):` applies it inside the block; undone on exit unless already undone."""
        with self.apply(model).inside():
            yield model
