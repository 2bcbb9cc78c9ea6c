"""The position-free attention core: keys are cached un-rotated, and positions are decided when they are read.

`position_free(cls)` is a subclass of a model's own attention class. It hands (cos=1, sin=0) to the model's forward, so
that queries and keys stay un-rotated and so enter the cache, and carries the real rotation along to our attention
function, which asks the method what is read where. No model code is copied.
"""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..anatomy import layer_type
from ..cache.layers import BoundedLayer, UnrotatedLayer
from ..cache.recurrent import broke_off, check_whole
from ..cache.ring import roll
from ..upstream.caches import CACHE_NAMES, cache_in, given_cache, without_cache
from ..upstream.versions import SAY_VERSION
from .identity import identity, unrotated
from .names import Implementation
from .order import is_regular, missing, rises, show_cached
from .rotation import Rotation

if TYPE_CHECKING:
    from .base import AttentionMethod

STATE = "_hf_longctx"  # in the __dict__ of a tower and of its patched attention modules: their Tower


@dataclass
class Tower:
    """What the patched layers of one model share: the method, the rotary embedding, and the forward in progress."""

    method: AttentionMethod
    rotary: nn.Module
    inner: str  # transformers' attention implementation before ours
    per_layer_type: bool  # the rotary embedding has frequencies for each kind of layer (Gemma3)
    layers: list[nn.Module] = field(default_factory=list, repr=False)
    rope: dict[int, bool] = field(default_factory=dict)  # does the layer of this index rotate? As far as is known
    checked: set[bool] = field(default_factory=set)  # of which `rope` a layer has passed the self-check
    joined: bool = False  # the model changes what the cache returns, so first tokens must come with it
    followed: bool = False  # a text has been followed through the cache of the whole model
    following: Callable[..., None] | None = field(default=None, repr=False)  # called by each layer meanwhile
    running: bool = False  # inside the tower's forward; a layer may also be called alone, by gradient checkpointing
    thread: int | None = None  # whose forward it is
    step: Step | None = None
    pos: Tensor | None = None  # the position ids that the tower was called with
    opened: list[UnrotatedLayer] = field(default_factory=list, repr=False)  # the cache layers of the running forward
    reading: Cache | None = field(default=None, repr=False)  # their cache, from when the first layer may write it

    @property
    def kernel(self) -> str:
        """The kernel that the user's `attn_implementation` asks for."""
        from .inner import KERNEL_OF

        return KERNEL_OF[self.inner]

    def rotary_is_ready(self) -> bool:
        """False while a model is being loaded: its buffers hold nothing yet."""
        return all(b.device.type != "meta" for b in self.rotary.buffers())

    def rotation(self, module: Any, like: Tensor, pos_BL: Tensor) -> Rotation:
        """The model's own cosines and sines at these positions; pairs with its own `apply_rotary_pos_emb`."""
        where = next((b.device for b in self.rotary.buffers()), like.device)
        typed = (layer_type(module),) if self.per_layer_type else ()
        cos, sin = self.rotary(like.new_empty((), device=where), pos_BL.to(where), *typed)
        return Rotation(cos.to(like.device), sin.to(like.device), rotary_function(stock_class(module)))


@dataclass
class Step:
    """One forward: what is the same for every layer of a tower."""

    embeddings: tuple[Tensor, Tensor]
    q_pos_BL: Tensor  # -1 for padding
    padded: bool
    regular: bool
    memo: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # what the model's own rotation is given, so that it leaves queries and keys as they are
        self.identity = identity(self.embeddings)


# -- the subclass ----------------------------------------------------------------------------------------------------
@functools.cache
def position_free(stock: Any) -> type[nn.Module]:
    """The subclass of an attention class that keeps its keys un-rotated. Cached: one per class."""

    def forward(self: nn.Module, hidden_states: Tensor, position_embeddings: Any = None, **kwargs: Any) -> Any:
        return _forward(self, stock, hidden_states, position_embeddings, kwargs)

    return subclass(position_free, stock, "LongCtx", forward)


def subclass(factory: Callable[[Any], type[nn.Module]], stock: Any, prefix: str, forward: Any) -> type[nn.Module]:
    """A subclass of an attention class that differs in its forward; `factory` makes it of the stock class again."""

    def __reduce_ex__(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (factory, stock), self.__dict__  # pickle cannot find a class made by a function

    namespace = {"forward": forward, "__reduce_ex__": __reduce_ex__, "__module__": __name__, "_stock": stock}
    return type(f"{prefix}{stock.__name__}", (stock,), namespace)


def _rebuild(factory: Callable[[Any], type[nn.Module]], stock: Any) -> nn.Module:
    cls = factory(stock)
    return cls.__new__(cls)


def stock_class(module: Any) -> Any:
    """The model's own attention class under ours."""
    return getattr(type(module), "_stock", type(module))


def function_named(name: str, module: Any) -> Any:
    """transformers' attention function of this name; eager is that of the module that defines the attention class."""
    eager = getattr(sys.modules[stock_class(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


def rotary_function(stock: type[nn.Module]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The `apply_rotary_pos_emb` of the module that defines an attention class."""
    function: Callable[..., tuple[Tensor, Tensor]] | None
    function = getattr(sys.modules[stock.__module__], "apply_rotary_pos_emb", None)
    if function is None:
        others = [name for name in vars(sys.modules[stock.__module__]) if name.startswith("apply_rotary")]
        raise ValueError(
            f"{stock.__name__}: keys are rotated by {' or '.join(others) or 'a way of its own'}, not by an "
            f"apply_rotary_pos_emb(q, k, cos, sin), so there is no telling how. hf_longctx does not support this model."
        )
    return function


def has_rope(module: Any) -> bool:
    """False for layers without position embeddings (NoPE: some of SmolLM3's, all full-attention ones of Cohere2).

    The self-check has looked; before it could, a layer's own `use_rope` is believed.
    """
    tower: Tower = vars(module)[STATE]
    return tower.rope.get(module.layer_idx, bool(getattr(module, "use_rope", True)))


def _forward(
    module: Any, stock: type[nn.Module], hidden_states: Tensor, embeddings: Any, kwargs: dict[str, Any]
) -> Any:
    tower: Tower = vars(module)[STATE]
    check_implementation(module)
    if embeddings is None:
        raise ValueError(
            f"{stock.__name__}: a layer of this model gets no position embeddings, which {tower.method.name} needs. "
            f"hf_longctx does not support this model."
        )
    if tower.rope.get(module.layer_idx) not in tower.checked and not torch.compiler.is_compiling():
        from .parity import check_parity, probe

        check_parity(module, tower, probe(hidden_states.shape[-1], hidden_states.device, hidden_states.dtype))
    cache = cache_in(kwargs)
    step = tower.step
    if step is None or step.embeddings[0] is not embeddings[0]:
        step = _begin(tower, module, hidden_states, embeddings, cache, kwargs)
        tower.step = step if tower.running else None
    layer = None
    if cache is not None:
        layer = adopt(tower.method, cache, module)
        layer.joined = tower.joined
        layer.open()
        tower.opened.append(layer)
        layer.push(step.q_pos_BL, step.padded)
    elif kwargs.get("use_cache") and tower.running and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"{stock.__name__} was called with use_cache=True and without a cache under a name that hf_longctx knows "
            f"({', '.join(CACHE_NAMES)}): the text read before would be lost. {SAY_VERSION}"
        )
    if cache is not None:
        kwargs = {**without_cache(kwargs), **given_cache(stock.forward, cache)}
    # a compiler drops the rotation by itself
    forward = stock.forward if torch.compiler.is_compiling() else unrotated(stock.forward)
    out = forward(module, hidden_states, position_embeddings=step.identity, longctx=(tower, step, layer), **kwargs)
    if tower.following is not None:
        tower.following(module, step, layer, cache)
    return out


def _begin(
    tower: Tower, module: Any, hidden: Tensor, embeddings: Any, cache: Cache | None, kwargs: dict[str, Any]
) -> Step:
    B, L = hidden.shape[:2]
    pos = kwargs.get("position_ids")
    pos = tower.pos if pos is None else pos
    if pos is None:
        start = cache.get_seq_length(module.layer_idx) if cache is not None else 0
        pos = torch.arange(start, start + L, device=hidden.device)[None]
    # a row for each of the positions of a token (mrope), the text's first: served where all are the same
    pos = (pos[0] if pos.ndim == 3 else pos).to(hidden.device).expand(B, L)
    _check_embeddings(tower, module, embeddings, pos)
    mask = kwargs.get("attention_mask")
    if mask is None:  # none, or nothing but ones
        for layer in tower.opened or ([] if cache is None else [adopt(tower.method, cache, module)]):
            layer.show_all()
        return _step(tower, module, embeddings, pos, None, cache)
    seen = cache.get_seq_length(module.layer_idx) if cache is not None else 0
    if mask.dtype == torch.bool and tuple(mask.shape[-3:-1]) == (1, 1) and L <= mask.shape[-1] < seen + L:
        raise ValueError(
            f"attention_mask: {type(module).__name__} was handed one of {mask.shape[-1]} tokens where {seen + L} were "
            f"read: this model counts what its cache holds by a layer that keeps no keys, so padding is lost, also "
            f"without {tower.method.name}. Give it rows of one length, or one row at a time."
        )
    if mask.dtype != torch.bool or tuple(mask.shape[-3:]) != (1, 1, seen + L):
        raise ValueError(
            f"attention_mask of shape {tuple(mask.shape)}: {tower.method.name} builds its own mask from positions and "
            f"takes the padding only. Pass a 2D mask (batch, tokens read so far) of ones and zeros."
        )
    real = mask[:, 0, 0].expand(B, -1)
    if seen and cache is not None:
        show_cached(tower.opened or [adopt(tower.method, cache, module)], real[:, :seen])
    real = real[:, seen:].to(hidden.device)
    return _step(tower, module, embeddings, torch.where(real, pos, -1), real, cache)


def _check_embeddings(tower: Tower, module: Any, embeddings: tuple[Tensor, Tensor], pos_BL: Tensor) -> None:
    """ValueError where the model rotates by something other than these positions, as it does tokens of images."""
    compiling = torch.compiler.is_compiling()
    if not has_rope(module) or (pos_BL.is_cuda and pos_BL.shape[1] == 1 and not compiling):
        return  # asking costs a sync, too much for every token
    ours = tower.rotation(module, embeddings[0], pos_BL)
    close = 4 * torch.finfo(ours.cos.dtype).eps
    right = ((ours.cos - embeddings[0]).abs().amax() <= close) & ((ours.sin - embeddings[1]).abs().amax() <= close)
    wrong = (
        f"{stock_class(module).__name__} rotates tokens by something other than their positions in the text: "
        f"{tower.method.name} works with one position a token. Models that give the tokens of images several (mrope) "
        f"are supported for text alone."
    )
    if compiling:
        torch._assert_async(right, wrong)
    elif not bool(right):
        raise ValueError(wrong)


def _step(tower: Tower, module: Any, embeddings: Any, pos: Tensor, real: Tensor | None, cache: Cache | None) -> Step:
    padded = real is not None
    compiling = torch.compiler.is_compiling()
    if pos.is_cuda and pos.shape[1] == 1 and not compiling:
        return Step(embeddings, pos, padded, False)  # asking costs a sync, too much for every token
    layer = None if cache is None else adopt(tower.method, cache, module)
    kept = None if layer is None or layer.pos is None else layer.pos.to(pos.device)
    rising = rises(pos, kept)
    if layer is not None and layer.padded:
        rising = rising & ~missing(layer, pos).any()
    wrong = (
        f"position_ids that start again or do not rise within a row: {tower.method.name} takes one document a row. "
        f"Pass packed documents as rows of a padded batch, with an attention_mask; to generate, pad on the left."
    )
    if compiling:
        torch._assert_async(rising, wrong)  # nothing can be asked while a graph is traced
        return Step(embeddings, pos, padded, False)
    if not bool(rising):
        if layer is not None and bool(rises(pos, kept)):
            raise ValueError(
                f"row {int(missing(layer, pos).long().argmax())} goes on at a position before some that it has read, "
                f"and tokens that it would see there have left the window, or the first tokens, of {tower.method.name} "
                f"for others that attention_mask now hides. Read its text again with a new cache (generate does so by "
                f"itself, given the ids of the whole text and a mask as long)."
            )
        raise ValueError(wrong)
    # only the GPU's window kernels want to know
    regular = pos.is_cuda and is_regular(pos if kept is None else torch.cat([kept, pos], 1))
    return Step(embeddings, pos, padded, regular)


def check_implementation(module: nn.Module) -> None:
    """Notice `set_attn_implementation` behind our back: stock attention would then run without any rotation."""
    if not isinstance(module.config._attn_implementation, Implementation):  # type: ignore[union-attr]
        now = module.config._attn_implementation  # type: ignore[union-attr]
        raise RuntimeError(
            f"attn_implementation was changed to {now!r} under {vars(module)[STATE].method!r}. Undo the method first, "
            f"set the implementation (it becomes the inner kernel), then apply the method again."
        )


# -- caches ------------------------------------------------------------------------------------------------------------
def adopt(method: AttentionMethod, cache: Cache, module: nn.Module) -> UnrotatedLayer:
    """The un-rotated layer of `cache` for this module, put in place of an empty `DynamicLayer` where needed."""
    index: int = module.layer_idx  # type: ignore[assignment]
    if getattr(cache, "layer_class_to_replicate", None) is not None:
        while len(cache.layers) <= index:
            cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[index] if isinstance(cache, Cache) else cache
    if isinstance(layer, UnrotatedLayer):
        if layer.owner != method:
            raise ValueError(f"this cache was written under {layer.owner!r} and cannot be read under {method!r}.")
        return layer
    if type(layer) is not DynamicLayer:
        raise ValueError(
            f"{type(layer).__name__}: {method.name} keeps its own cache and can replace an empty DynamicCache "
            f"only. Leave the cache and cache_implementation out."
        )
    if layer.get_seq_length():
        raise ValueError(
            f"this cache holds {layer.get_seq_length()} rotated keys of a model without {method.name}: they cannot be "
            f"read at other positions. Start with a new cache."
        )
    cache.layers[index] = method.cache_layer(module)
    return cache.layers[index]


def adopt_all(state: Tower, cache: Cache) -> list[UnrotatedLayer]:
    """The un-rotated layers of `cache` for every patched layer of a tower."""
    return [adopt(state.method, cache, module) for module in state.layers]


def before_forward(tower_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """Checks everything that can be wrong before the first layer runs, so that a cache is never left half-updated."""
    from .following import follow

    state: Tower = vars(tower_module)[STATE]
    if not torch.compiler.is_compiling():
        if state.running and state.thread not in (None, threading.get_ident()):
            raise RuntimeError(
                f"{type(tower_module).__name__}: another thread's forward is still running, and a model with "
                f"{state.method.name} serves one thread at a time. Use a lock, or one copy of the model a thread."
            )
        state.thread = threading.get_ident()
        if state.reading is not None:  # Ctrl-C, after which no hook is called
            broke_off(state.reading)
            state.reading = None
    if not (state.followed or state.following or torch.compiler.is_compiling()):
        follow(tower_module, state)
    given = kwargs.get("position_ids")
    state.step, state.running, state.pos = None, True, given if isinstance(given, Tensor) else None
    check_implementation(state.layers[0])
    if kwargs.get("output_attentions") or getattr(tower_module.config, "output_attentions", False):
        raise ValueError(f"output_attentions=True: {state.method.name} never forms the attention matrix. Leave it out.")
    open_cache(tower_module, args, kwargs)
    bounded = list(dict.fromkeys(layer for layer in state.opened if isinstance(layer, BoundedLayer)))
    tokens = next((x for x in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args) if x is not None), None)
    single = not torch.compiler.is_compiling() and isinstance(tokens, Tensor) and tokens.shape[1:2] == (1,)
    if bounded and single and not _learns(tower_module, tokens, bounded):
        roll(bounded)
    else:
        for layer in bounded:
            layer.to_order()
    if not torch.compiler.is_compiling():
        state.reading = cache_in(kwargs, args)


def _learns(tower_module: nn.Module, tokens: Any, layers: list[BoundedLayer]) -> bool:
    """Will there be gradients? They need the keys of every step as they were, and a ring writes over them."""
    if not torch.is_grad_enabled():
        return False
    kept = (layer.keys for layer in layers if layer.keys is not None)
    return any(tensor.requires_grad for tensor in (tokens, *kept, *tower_module.parameters()))


def open_cache(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """Let `model`, which carries a method, read the cache that it is called with."""
    cache = cache_in(kwargs, args)
    if cache is not None:
        state: Tower = next(vars(m)[STATE] for m in model.modules() if STATE in vars(m))
        check_whole(cache)
        for layer in adopt_all(state, cache):
            layer.open()
            state.opened.append(layer)


def after_forward(tower_module: nn.Module, args: Any, output: Any) -> None:
    """Let go of the forward's tensors and close the cache to other models, also after an exception."""
    state: Tower = vars(tower_module)[STATE]
    if not torch.compiler.is_compiling() and state.thread not in (None, threading.get_ident()):
        return  # this thread's forward was refused; the other's goes on
    if output is None and state.reading is not None and state.following is None:  # it raised
        broke_off(state.reading)
    state.step, state.running, state.pos, state.reading = None, False, None, None
    for layer in state.opened:
        layer.close()
    state.opened = []
