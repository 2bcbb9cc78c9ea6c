"""The state that the patched layers of one model share, and that of the forward in progress."""

# B batch, L queries, D head dim
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor, nn
from transformers.cache_utils import Cache

from ..anatomy import layer_type
from ..cache.base import UnrotatedLayer
from ..ops.rotation import Rotation
from .base_attention import KERNEL_OF
from .identity import identity
from .names import Implementation
from .subclass import rotary_function, stock_class

STATE = "_hf_longctx"  # in the __dict__ of a decoder and of its patched attention modules: their DecoderState


class DecidesPositions(Protocol):
    """A method as the forward sees it; `AttentionMethod` is defined above the forward."""

    name: ClassVar[str]

    def cache_layer(self, module: nn.Module) -> UnrotatedLayer:
        """The empty cache layer of one attention module."""

    def attention(self, inputs: Any) -> Tensor:
        """The attention of one layer, (B, L, H, D)."""

    def angles(self, decoder: Any, pos_BL: Tensor) -> tuple[Tensor, Tensor] | None: ...


@dataclass
class DecoderState:
    """The state that patched layers share: the method, the rotary embedding, and the forward in progress."""

    method: DecidesPositions
    rotary: nn.Module
    base_attention: str  # transformers' attention implementation that the model had before
    per_layer_type: bool  # the rotary embedding has frequencies for each kind of layer (Gemma3)
    layers: list[nn.Module] = field(default_factory=list, repr=False)
    rope: dict[int, bool] = field(default_factory=dict)  # does the layer of this index rotate? As far as is known
    checked: set[bool] = field(default_factory=set)  # of which `rope` a layer has passed the self-check
    joined: bool = False  # the model changes what the cache returns, so first tokens must come with it
    followed: bool = False  # a text has been followed through the cache of the whole model
    following: Callable[..., None] | None = field(default=None, repr=False)  # called by each layer meanwhile
    running: bool = False  # inside the decoder's forward; a layer may also be called alone, by gradient checkpointing
    thread: int | None = None  # whose forward it is
    step: Step | None = None
    pos: Tensor | None = None  # the position ids that the decoder was called with
    opened: list[UnrotatedLayer] = field(default_factory=list, repr=False)  # the cache layers of the running forward
    reading: Cache | None = field(default=None, repr=False)  # their cache, from when the first layer may write it

    @property
    def kernel(self) -> str:
        """The kernel that the user's `attn_implementation` asks for."""
        return KERNEL_OF[self.base_attention]

    def rotary_is_ready(self) -> bool:
        """False while a model is being loaded: its buffers hold nothing yet."""
        return all(b.device.type != "meta" for b in self.rotary.buffers())

    def read_rotation(self, module: Any, like: Tensor, pos_BL: Tensor) -> Rotation:
        """The rotation by the method's own angles at these positions, or by the model's."""
        own = self.method.angles(self, pos_BL)
        if own is None:
            return self.rotation(module, like, pos_BL)
        return Rotation(own[0].to(like), own[1].to(like), rotary_function(stock_class(module)))

    def rotation(self, module: Any, like: Tensor, pos_BL: Tensor) -> Rotation:
        """The model's own cosines and sines at these positions; pairs with its own `apply_rotary_pos_emb`."""
        where = next((b.device for b in self.rotary.buffers()), like.device)
        typed = (layer_type(module),) if self.per_layer_type else ()
        cos, sin = self.rotary(like.new_empty((), device=where), pos_BL.to(where), *typed)
        return Rotation(cos.to(like.device), sin.to(like.device), rotary_function(stock_class(module)))


@dataclass
class Step:
    """One forward: the values that are the same for every layer of a decoder."""

    embeddings: tuple[Tensor, Tensor]
    q_pos_BL: Tensor  # -1 for padding
    padded: bool
    consecutive: bool  # see `Positions`
    memo: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # given to the model's own rotation, so that it leaves queries and keys as they are
        self.identity = identity(self.embeddings)


class LayerCall(NamedTuple):
    """What the forward of a patched module hands to its attention function, through the model's own code."""

    decoder: DecoderState
    step: Step
    layer: UnrotatedLayer | None  # of the cache


def has_rope(module: Any) -> bool:
    """False for layers without position embeddings (NoPE: some of SmolLM3's, all full-attention ones of Cohere2).

    The self-check has looked; before it could, a layer's own `use_rope` is believed.
    """
    decoder: DecoderState = vars(module)[STATE]
    return decoder.rope.get(module.layer_idx, bool(getattr(module, "use_rope", True)))


def check_implementation(module: nn.Module) -> None:
    """RuntimeError after `set_attn_implementation`: stock attention would then run without any rotation."""
    if not isinstance(module.config._attn_implementation, Implementation):  # type: ignore[union-attr]
        now = module.config._attn_implementation  # type: ignore[union-attr]
        raise RuntimeError(
            f"attn_implementation was changed to {now!r} under {vars(module)[STATE].method!r}. Undo the method first, "
            f"set the implementation (it becomes the base attention), then apply the method again."
        )
