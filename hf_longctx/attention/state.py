"""The state that the patched layers of one model share, and that of the forward in progress."""

# B batch, L queries, D head dim
from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ..anatomy import TABLE, layer_type
from ..cache.base import UnrotatedLayer
from ..cache.once import Apply, made_once
from ..cache.slots import KeyValues
from ..cache.store import Store
from ..cache.waiting import Rows
from ..ops.bias import Bias
from ..ops.layout import RotaryLayout
from ..ops.rotation import Rotation
from .base_attention import KERNEL_OF
from .constants import Constants
from .names import is_unrotated
from .watch import Found
from .ways import Reach

STATE = "_hf_longctx"  # in the __dict__ of a decoder and of its patched attention modules: their DecoderState
FOUND = "_hf_longctx_found"  # in that of a module: what it does, by how it is called (see `kind_of_call`)


class DecidesPositions(Protocol):
    """A method as the forward sees it; `AttentionMethod` is defined above the forward."""

    name: ClassVar[str]

    @property
    def looks_up(self) -> bool: ...

    def cache_layer(self, module: nn.Module) -> UnrotatedLayer:
        """The empty cache layer of one attention module."""

    def attention(self, inputs: Any) -> Tensor:
        """The attention of one layer, (B, L, H, D)."""

    def angles(self, decoder: Any, pos_BL: Tensor) -> tuple[Tensor, Tensor] | None: ...

    def bias(self, module: nn.Module) -> Bias | None: ...


@dataclass
class DecoderState:
    """The state that patched layers share: the method, the rotary embedding, and the forward in progress."""

    method: DecidesPositions
    rotary: nn.Module
    base_attention: str  # transformers' attention implementation that the model had before
    has_sdpa: bool = True  # transformers' sdpa can do its attention
    per_layer_type: bool = field(init=False)  # the rotary embedding has frequencies for each kind of layer (Gemma3)
    three_rows: bool = False  # it takes three positions of each token, the same three for text
    layers: list[nn.Module] = field(default_factory=list, repr=False)
    # the layouts that layers have passed the self-check with, by class and what was found of them
    checked: dict[tuple[Any, Found], Found] = field(default_factory=dict, repr=False)
    joined: bool = False  # the model changes what the cache returns, so first tokens must come with it
    followed: bool = False  # a text has been followed through the cache of the whole model
    following: Callable[..., None] | None = field(default=None, repr=False)  # called by each layer meanwhile
    # the column of the text from which tokens look others up, also those before it; None: all tokens do
    look_up_from: int | None = None
    # called with a layer and the slots (B, T, L, K) that its queries have looked up and that count
    watching: Callable[[nn.Module, Tensor], None] | None = field(default=None, repr=False)
    running: bool = False  # inside the decoder's forward; a layer may also be called alone, by gradient checkpointing
    thread: int | None = None  # whose forward it is
    steps: list[Step] = field(default_factory=list, repr=False)  # one for each of the model's position embeddings
    pos: Tensor | None = None  # the position ids that the decoder was called with
    lent: dict[str, Lent] = field(default_factory=dict, repr=False)  # where the keys that other layers read stand
    opened: list[UnrotatedLayer] = field(default_factory=list, repr=False)  # the cache layers of the running forward
    reading: Cache | None = field(default=None, repr=False)  # their cache, from when the first layer may write it
    had: int = 0  # how many layers it had then: some caches get theirs one by one
    recurs: bool | None = None  # has the decoder layers that keep a state? None: not asked yet
    told: bool | None = None  # does such a one take positions?
    rows: Rows | None = None  # what the running forward means for the states of each row
    constants: Constants = field(default_factory=Constants, repr=False)

    def __post_init__(self) -> None:
        forward: Any = self.rotary.forward
        self.per_layer_type = _takes_layer_type(getattr(forward, "__func__", forward))

    @property
    def kernel(self) -> str:
        """The kernel that the user's `attn_implementation` asks for.

        The fastest where eager is all that transformers has for the model, because of a cap or of sinks.
        """
        only_eager = self.base_attention == "eager" and not self.has_sdpa
        return "auto" if only_eager else KERNEL_OF[self.base_attention]

    def rotary_is_ready(self) -> bool:
        """False while a model is being loaded: its buffers hold nothing yet."""
        return all(b.device.type != "meta" for b in self.rotary.buffers())

    def embeddings(self, module: Any, like: Tensor, pos_BL: Tensor) -> Any:
        """What the rotary embedding has for a layer, as the model hands it on; None: nothing for layers of its kind."""
        held, where = dict(vars(self.rotary)), self._where(like)
        where = like.device if "meta" in (where.type, like.device.type) else where  # values cannot come from there
        try:
            found = self._angles(module, like.new_empty((), device=where), pos_BL.to(where))
            return found.to(like.device) if isinstance(found, Tensor) else tuple(x.to(like.device) for x in found)
        except (KeyError, AttributeError):  # no frequencies of this name
            if not self.per_layer_type:
                raise
            return None
        finally:
            if like.device.type == "meta":  # a model is being loaded: longrope would keep frequencies without values
                vars(self.rotary).clear()
                vars(self.rotary).update(held)

    def _where(self, like: Tensor) -> torch.device:
        """The device of the rotary embedding: the layers of one model may be on several."""
        return next((b.device for b in self.rotary.buffers()), like.device)

    def _angles(self, module: Any, like: Tensor, pos_BL: Tensor) -> Any:
        typed = (layer_type(module),) if self.per_layer_type else ()
        if not self.three_rows:
            try:
                return self.rotary(like, pos_BL, *typed)
            except IndexError:  # it takes a row for each kind of position of a token (mrope)
                self.three_rows = True
        return self.rotary(like, pos_BL.expand(3, *pos_BL.shape), *typed)

    def parts(self, embeddings: Any) -> tuple[Tensor, Tensor]:
        """Cosines and sines of position embeddings, which may be complex numbers (Llama 4), or sines first (GPT-J)."""
        if isinstance(embeddings, Tensor):
            return embeddings.real, embeddings.imag
        if TABLE in self.rotary._buffers:
            return embeddings[1], embeddings[0]
        return embeddings[0], embeddings[1]

    def rotation(self, module: Any, layout: RotaryLayout, like: Tensor, pos_BL: Tensor) -> Rotation:
        """The model's own cosines and sines at these positions, applied as a layer applies them."""
        where = self._where(like)
        cos, sin = self.parts(self._angles(module, like.new_empty((), device=where), pos_BL.to(where)))
        return Rotation(cos.to(like.device), sin.to(like.device), layout)

    def read_rotation(self, module: Any, layout: RotaryLayout, like: Tensor, pos_BL: Tensor) -> Rotation:
        """The rotation by the method's own angles at these positions, or by the model's."""
        own = self.method.angles(self, pos_BL)
        if own is None:
            return self.rotation(module, layout, like, pos_BL)
        return Rotation(own[0].to(like), own[1].to(like), layout)


@lru_cache(maxsize=64)
def _takes_layer_type(forward: Any) -> bool:
    return "layer_type" in inspect.signature(forward).parameters


@dataclass
class Step:
    """One forward: the values that are the same for every layer that gets the same position embeddings."""

    source: Any  # the embeddings, or the first of them, by which the step is recognised
    like: Tensor  # in the precision of the model's own cosines, which autocast leaves alone
    pos_BL: Tensor  # the positions that the model was given
    q_pos_BL: Tensor  # the same, but -1 for padding
    padded: bool
    consecutive: bool  # see `Positions`
    ends: int  # the number of columns of the text with this forward's, padding included
    memo: dict[Any, Any] = field(default_factory=dict)
    once: Apply = field(default_factory=made_once)  # of cache layers that are made in this forward


@dataclass
class Lent:
    """Where keys stand that other layers read as well (Gemma 3n and 4)."""

    keys: Callable[[], Tensor | None] | None  # the keys themselves, as long as the forward runs
    pos_BS: Tensor
    step: Step | None
    padded: bool
    layout: Any = None
    sinks: KeyValues | None = None
    ahead: int = 0  # how many of the keys are sinks, which come before those at `pos_BS`
    everything: Store | None = None  # what can be looked up besides

    def is_of(self, keys: Tensor) -> bool:
        """Are these the keys, or their copy on another device, as far as is known?"""
        own = None if self.keys is None else self.keys()
        return own is None or own is keys or own.device != keys.device

    def end(self) -> None:
        """Let go of what only the forward needs. A layer is run again for gradient checkpointing after that."""
        self.keys = self.step = self.sinks = self.everything = None


def source_of(embeddings: Any) -> Any:
    """What tells the position embeddings of one forward from those of another."""
    return embeddings[0] if isinstance(embeddings, (tuple, list)) else embeddings


def kind_of_call(reach: Reach, embeddings: Any, kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """What tells apart calls in which a layer may do different things: no embeddings, or another place in the model."""
    return embeddings is None, *reach.numbers(kwargs)


def known_of(module: Any) -> dict[tuple[Any, ...], Found]:
    """What is known of a layer, by kinds of calls."""
    return vars(module)[FOUND]


def changes_keys(module: Any) -> bool:
    """Does attention make its keys of what its cache returns (latent attention, MLA, for one), as far as is known?"""
    return STATE in vars(module) and vars(module)[STATE].joined


def check_implementation(module: nn.Module) -> None:
    """RuntimeError after `set_attn_implementation`: stock attention would then run without any rotation."""
    if not is_unrotated(module.config._attn_implementation):  # type: ignore[union-attr]
        now = module.config._attn_implementation  # type: ignore[union-attr]
        raise RuntimeError(
            f"attn_implementation was changed to {now!r} under {vars(module)[STATE].method!r}. Undo the method first, "
            f"set the implementation (it becomes the base attention), then apply the method again."
        )
