"""How a stock model gets attention to a shared prefix (`ops/prefix.py`) inside a `with` block.

Forwards with any other cache, or with none, go to the implementation that the model had before.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache
from transformers.masking_utils import AttentionMaskInterface

from ..anatomy import FULL, attention_layers, decoder_layers, layer_type
from ..attention.base_attention import KERNEL_OF, PLAIN, checked
from ..attention.names import Named, base_function, base_mask
from ..attention.subclass import subclass
from ..cache.recurrent import has_states
from ..method import KEY, LongContextMethod
from ..ops.prefix import PrefixKeys, PrefixQuery, SuffixKeys, attend
from ..patch import Patch, applied
from ..rope.parameters import moving_types
from ..upstream.caches import cache_in
from .attends import Watched, check_layer
from .layers import SharedCache, SharedLayer

NAME = f"{KEY}_shared_prefix"
STATE = "_hf_longctx_shared"  # in the __dict__ of the decoder and of the models around it: their SharingState
SLIDING = "sliding_attention"


class SharedImplementation(Named):
    """Of layers after a shared prefix."""

    NAME = NAME


@dataclass
class SharingState:
    """The cache after a shared prefix that the forward in progress writes."""

    cache: SharedCache | None = None


class Sharing:
    """Stands for a shared prefix among a model's patches. It has a method's flags and is none: no config names it."""

    native, decides_positions, endless = True, True, False

    def __repr__(self) -> str:
        return "shared_prefix(...)"


def install(patch: Patch, decoder: Any, root: nn.Module) -> None:
    """Give a model's attention the forward below, after `check`."""
    patch.own_configs(root)
    base = decoder.config._attn_implementation or "sdpa"
    layers: list[Any] = attention_layers(decoder)
    for module in layers:
        stock: Any = type(module)
        patch.set_class(module, sharing(stock))
    for config in {id(m.config): m.config for m in decoder.modules() if hasattr(m, "config")}.values():
        patch.set(config, "_attn_implementation_internal", SharedImplementation(base))
    state = SharingState()
    # the models around it too: some make the masks of their decoders
    for module in root.modules():
        if module is decoder or any(m is decoder for m in module.modules()):
            patch.set(module, STATE, state)
            patch.add_hook(module, before_forward, "pre")
            patch.add_hook(module, after_forward, "post")


def is_shared(model: Any) -> bool:
    """Is it inside `with shared_prefix(...)`?"""
    return any(isinstance(patch.method, Sharing) for patch in applied(model))


def check(decoder: Any) -> None:
    """ValueError unless a model computes exactly the same after a shared prefix as after its own."""
    config, name = decoder.config, type(decoder).__name__
    if is_shared(decoder):
        raise ValueError(
            "this model is inside `with shared_prefix(...)` already. Use prefix.extend for a deeper level."
        )
    for patch in applied(decoder):
        check_method(patch.method, "Undo it (hf_longctx.undo(model)), or generate without a shared prefix")
    base = config._attn_implementation or "sdpa"
    if base not in PLAIN:
        raise ValueError(
            f"attn_implementation={base!r}: a prefix is shared with {' or '.join(PLAIN)}. Load the model with "
            f"attn_implementation='sdpa' (hf_longctx then uses the fastest available kernel)."
        )
    moving = moving_types(getattr(config, "rope_parameters", None))
    if moving:
        raise ValueError(
            f"rope_type={moving[0]!r} changes its frequencies with the length read, so the keys of a prefix would "
            f"depend on what follows. Use static frequencies, such as yarn or ntk."
        )
    if "mrope_section" in (getattr(config, "rope_parameters", None) or {}):
        raise ValueError(f"{name}: its tokens have several positions each (mrope), which is not supported.")
    layers: list[Any] = attention_layers(decoder)
    n_layers = len(decoder_layers(decoder))
    own = [m.layer_idx for m in layers] == list(range(n_layers))
    if not own or getattr(config, "num_kv_shared_layers", None) or has_states(DynamicCache(config=config)):
        raise ValueError(
            f"{name}: {len(layers)} attention modules in {n_layers} layers. Layers that keep something "
            f"other than keys of their own (recurrent states, another layer's keys) cannot share a prefix."
        )
    for module in layers:
        kind = layer_type(module)
        if kind not in (FULL, SLIDING) or (kind == SLIDING and window_of(module) is None):
            raise ValueError(
                f"{type(module).__name__}: layer {module.layer_idx} is of the kind {kind!r}; only {FULL} and {SLIDING} "
                f"layers can share a prefix."
            )
        check_layer(module, decoder, SharedImplementation(base))


def check_method(method: LongContextMethod, remedy: str) -> None:
    """ValueError, which ends with `remedy`, for a method that no model shares a prefix under."""
    if method.decides_positions:
        raise ValueError(
            f"{method!r} keeps un-rotated keys in a cache of its own, and a prefix is shared as stock, rotated keys. "
            f"{remedy}."
        )


def window_of(module: Any) -> int | None:
    """How many tokens a sliding-window layer sees, its own included; None: all of them."""
    if layer_type(module) == FULL:
        return None
    own: int | None = getattr(module, "sliding_window", None)
    return own if own is not None else getattr(module.config, "sliding_window", None)


@functools.cache
def sharing(stock: Any) -> type[nn.Module]:
    """The subclass of an attention class that tells the attention function below which cache layer it writes."""

    @functools.wraps(stock.forward)  # attention modules are found by their arguments' names
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self.config._attn_implementation, SharedImplementation):  # type: ignore[union-attr]
            raise RuntimeError(
                f"attn_implementation was changed to {self.config._attn_implementation!r} "  # type: ignore[union-attr]
                f"inside `with shared_prefix(...)`. Leave the block first."
            )
        cache = cache_in(kwargs)
        if isinstance(cache, SharedCache):
            kwargs["shared"] = cache.layers[self.layer_idx]
        return stock.forward(self, *args, **kwargs)

    return subclass(sharing, stock, "Sharing", forward)


def before_forward(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """Work out a forward's positions, and keep transformers from making a mask over the whole prefix."""
    cache = cache_in(kwargs)
    if not isinstance(cache, SharedCache):
        return None
    mask, step = kwargs.get("attention_mask"), cache.current.step
    masks = list(mask.values()) if isinstance(mask, dict) else [mask]
    if step is not None and all(one is step.mask for one in masks):
        return None  # a model around this one has done it
    if kwargs.get("output_attentions"):
        raise ValueError("output_attentions=True: after a shared prefix there is no attention matrix. Leave it out.")
    tokens = next(x for x in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args) if x is not None)
    state: SharingState = vars(module)[STATE]
    if state.cache is not None:  # Ctrl-C, after which no hook is called
        state.cache.end(whole=False)
    state.cache = cache
    step = cache.begin(mask, tokens.shape[0], tokens.shape[1], tokens.device, kwargs.get("position_ids"))
    kwargs["attention_mask"] = step.mask
    if kwargs.get("position_ids") is None:
        kwargs["position_ids"] = step.q_pos_BL.clamp(min=0)
    return args, kwargs


def after_forward(module: nn.Module, args: Any, output: Any) -> None:
    """Close the cache to models without this forward, also after an exception."""
    state: SharingState = vars(module)[STATE]
    if state.cache is not None:
        state.cache.end(whole=output is not None)
        state.cache = None


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared: SharedLayer | Watched | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with the signature that transformers calls."""
    if shared is None:
        return base_function(module)(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    if isinstance(shared, Watched):
        return shared.see(key, value, attention_mask, kwargs)
    query, scale = checked(module, query, scaling, dropout, kwargs)
    step = shared.current.step
    assert step is not None
    to, index = query.device, shared.index
    asked = PrefixQuery(query, step.q_pos_BL.to(to), window_of(module), scale, step.memo)
    # real tokens of a row are consecutive, also with padding between turns; a buffer ends with empty columns
    own = SuffixKeys(key, value, shared.positions(step).to(to), consecutive=shared.ring is None, padded=step.padded)
    levels = [
        PrefixKeys(level.keys[index], level.values[index], step.positions(level, index)) for level in shared.levels
    ]
    return attend(asked, own, levels, KERNEL_OF[module.config._attn_implementation.base_attention]), None


mask = base_mask  # forwards after a prefix never ask for one


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
