"""`SequenceParallel`: several processes share the tokens of a batch, behind a stock model's forward."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ...anatomy import attention_layers
from ...patch import Patch, unwrap
from ...settings import Settings
from ..ranks import KINDS
from .check import check_model, window_layers
from .choosing import Geometry, kind_of
from .flexible import Flexible
from .forward import STATE, State, forward_of
from .groups import Groups
from .interface import NAME

logger = logging.getLogger("hf_longctx")


@dataclass(frozen=True, kw_only=True)
class SequenceParallel(Settings):
    """Share the tokens of every batch among `degree` processes, exactly, also of packed documents.

    The model's forward takes the whole batch, the same on every process of a group, and answers for the whole batch:
    the loss of the group, and whatever else is said of each token, in the order of the batch. Its gradient is `degree`
    times the part of the process, so a mean over all processes (DDP, FSDP2, ZeRO) is the gradient of one process.

    Use when: a text does not fit on one card, or takes too long there; in training and in evaluation.

    Cannot: generate, or serve attention with a softcap, sinks or dropout, layers with a recurrent state, RoPE whose
    frequencies follow the length, or a method of hf_longctx that changes attention. Each is refused by name.

    Costs: one exchange of the keys of documents that are cut in each layer, in forward and in backward.

    Args:
        degree: Processes that share a batch; it divides their number. "auto": all of them, in groups that are planned
            for the documents of each batch (FlexSP): long documents in large groups, the others in small ones.
        kind: What is exchanged: "gather" (all keys at once), "ring" (keys from rank to rank), "ulysses" (heads for
            tokens), "hybrid" (Ulysses inside hosts, the others among them), "auto" (by heads, hosts and length).
        cut: Which documents are cut: "balance" (as few as balance needs), "all", or those of at least so many tokens.
        gather_logits: Answer with the logits of the whole batch on every process. They take the memory of one process.
        capacity: For "auto", the most tokens that a process can hold; None: as many as a batch has.
        calibration: For "auto", a file of `hf-longctx calibrate`, by which groups are planned; None: rough costs.
    """

    name: ClassVar[str] = "sequence_parallel"
    # what is asked of methods on a model; this one is in no config
    native: ClassVar[bool] = True
    decides_positions: ClassVar[bool] = True
    endless: ClassVar[bool] = False

    degree: int | str = 2
    kind: str = "auto"
    cut: str | int = "balance"
    gather_logits: bool = False
    capacity: int | None = None
    calibration: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        flexible = self.degree == "auto"
        if not flexible and (not isinstance(self.degree, int) or self.degree < 1):
            raise ValueError(
                f"degree={self.degree!r}: expected how many processes share a batch, 1 or more, or 'auto'."
            )
        if self.capacity is not None and self.capacity < 1:
            raise ValueError(f"capacity={self.capacity}: expected how many tokens a process can hold, 1 or more.")
        given = [name for name in ("capacity", "calibration") if getattr(self, name) is not None]
        if given and not flexible:
            raise ValueError(f"{given[0]}={getattr(self, given[0])!r} goes with degree='auto' only. Leave it out.")
        if self.kind not in ("auto", *KINDS):
            raise ValueError(f"kind={self.kind!r}: expected auto, {', '.join(KINDS)}.")
        if self.cut not in ("balance", "all") and not (isinstance(self.cut, int) and self.cut > 0):
            raise ValueError(
                f"cut={self.cut!r}: expected 'balance', 'all', or the fewest tokens of a document that is cut."
            )

    def apply(self, model: nn.Module, mesh: DeviceMesh | None = None) -> Patch:
        """Change a model in memory, and return the `Patch` that undoes the change. Every process calls it.

        Apply it before the model is wrapped by DDP or Accelerate, and after whatever replaces its forward (TRL's
        trainers do, when they are made). PEFT models may be wrapped before or after. No config says anything of it.

        Args:
            model: A causal language model of transformers.
            mesh: The processes that share a batch, for hybrid of two dimensions: hosts, and the ranks of a host. None:
                as many successive ranks as `degree`.
        """
        root: Any = unwrap(model)
        decoder: Any = check_model(root, repr(self))
        geometry, device = _geometry(decoder), next(root.parameters()).device
        degree = self.processes(dist.get_world_size() if dist.is_initialized() else 1)
        kind = kind_of(self.kind, degree, geometry)
        if kind == "ulysses" and geometry.heads < degree:
            raise ValueError(
                f"kind='ulysses': {geometry.heads} query heads cannot be shared by {degree} ranks. Use "
                f"kind='ring' or 'gather', or 'hybrid'."
            )
        flexible = None
        if self.degree == "auto" and degree > 1:
            if mesh is not None:
                raise ValueError("degree='auto' makes groups of all processes. Leave the mesh out.")
            flexible = Flexible.of(self, self.kind, geometry, device)
            groups = Groups(dist.group.WORLD)
        else:
            groups = Groups.of(degree, kind, mesh, geometry.heads, device.type)
        state = State(self, groups, kind, geometry, root.forward, self.gather_logits, flexible)
        patch = Patch(method=self, model=decoder)
        with patch.recording():
            patch.own_configs(root)
            configs = [module.config for module in root.modules() if hasattr(module, "config")]
            for config in {id(config): config for config in configs}.values():
                patch.set(config, "_attn_implementation_internal", NAME)
            patch.set(root, STATE, state)
            patch.set(root, "forward", forward_of(root))
        logger.info("applied %r to %s", self, type(root).__name__)
        return patch

    @contextmanager
    def on(self, model: nn.Module, mesh: DeviceMesh | None = None) -> Iterator[nn.Module]:
        """`with settings.on(model):` applies it inside the block; undone on exit unless already undone."""
        with self.apply(model, mesh).inside():
            yield model

    def processes(self, launched: int) -> int:
        """How many processes get the same batch, of so many that run."""
        return launched if isinstance(self.degree, str) else self.degree


def _geometry(decoder: Any) -> Geometry:
    config = decoder.config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    layer = attention_layers(decoder)[0]
    dims = (getattr(layer, name, None) for name in ("head_dim", "qk_head_dim"))
    head_dim = next(filter(None, dims), config.hidden_size // heads)
    return Geometry(heads, kv_heads, head_dim, *window_layers(decoder))
