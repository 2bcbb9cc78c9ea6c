"""The self-check: does attention over un-rotated keys give what the model's own attention gives?

Families differ in ways that no attribute shows (some normalise after rotating, some rotate only a slice before the
shared function, some leave layers un-rotated). A few tokens through a layer settle it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ..cache.rolling import roll
from ..cache.sink_window import SinkWindowLayer
from ..cache.slots import KeyValues
from ..ops.attend import attend
from ..ops.branch import Branch
from ..ops.checked import layer_tolerance, relative_error
from ..ops.masks import BeyondWindow, Causal, Mask, Window
from ..ops.positions import Positions
from ..ops.rotation import Rotation
from ..upstream.caches import given_cache
from .base_attention import PLAIN
from .identity import unrotated
from .inputs import AttentionInputs
from .names import Implementation
from .state import DecoderState, Step
from .subclass import stock_class
from .watch import evaluating, rotates

TOKENS, WINDOW = 8, 4  # of the check
PIECES = (0, 3), (3, 6), (6, 7), (7, 8)


class _CausalOnly:
    """What a method is to the attention function, with nothing changed: plain causal attention in one branch.

    Over a cache in two: the last `WINDOW` tokens, and the first ones that the cache keeps apart.
    """

    name = "parity check"
    cache: _Watched | None = None

    def angles(self, decoder: DecoderState, pos_BL: Tensor) -> None:
        """The model's own."""

    def attention(self, inputs: AttentionInputs) -> Tensor:
        """See `AttentionMethod`."""
        if self.cache is None or inputs.sinks is None:
            q_rope, k_rope = inputs.true_ropes()
            return attend([_branch(inputs, inputs.keys, Causal(), q_rope, k_rope)], scale=inputs.scale)
        self.cache.compare(inputs.keys)
        q_rope = inputs.rotation(inputs.q_pos_BL)
        parts = (inputs.keys, Window(WINDOW)), (inputs.sinks, BeyondWindow(WINDOW))
        branches = [_branch(inputs, keys, mask, q_rope, inputs.rotation(keys.pos)) for keys, mask in parts]
        return attend(branches, scale=inputs.scale)


def _branch(
    inputs: AttentionInputs, keys: KeyValues, mask: Mask, q_rope: Rotation | None, k_rope: Rotation | None
) -> Branch:
    """A branch of which no kernel knows more than the positions: so the plain ones do it."""
    return Branch(inputs.q_BHLD, keys.k, keys.v, Positions(inputs.q_pos_BL, keys.pos), mask, q_rope, k_rope)


class _Watched(SinkWindowLayer):
    """The cache of the check: a whole text of its length, in first tokens and a window, and what it handed out."""

    def __init__(self, owner: Any, joined: bool) -> None:
        super().__init__(owner, n_first=TOKENS - WINDOW, n_last=WINDOW - 1)
        self.joined, self.changed = joined, False

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.returned = super().update(*args, **kwargs)
        return self.returned

    def compare(self, keys: KeyValues) -> None:
        """Note whether the layer attends to something other than what `update` returned."""
        self.changed |= keys.k is not self.returned[0] or keys.v is not self.returned[1]


def eager_causal(hidden_BLX: Tensor) -> Tensor:
    """The additive causal mask (1, 1, L, L) that transformers' eager attention needs to be told."""
    L = hidden_BLX.shape[1]
    return torch.full((1, 1, L, L), float("-inf"), device=hidden_BLX.device, dtype=hidden_BLX.dtype).triu(1)


def probe(width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Hidden states for the check: different ones, since equal tokens attend alike wherever they stand."""
    if device.type == "meta":  # has no generator
        return torch.empty(1, TOKENS, width, device=device, dtype=dtype)
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(1, TOKENS, width, generator=generator, device=device, dtype=torch.float32).to(dtype)


def check_parity(module: Any, decoder: DecoderState, hidden_BLX: Tensor) -> None:
    """Learn once whether a layer rotates at all, and compare one layer of either kind with its stock class.

    On the meta device, while a model is being loaded, there is nothing to compare; what is not learnt there waits for
    the layer's first forward.
    """
    index, loading = module.layer_idx, hidden_BLX.device.type == "meta"
    if index not in decoder.rope:
        try:
            decoder.rope[index] = rotates(module, stock_class(module), hidden_BLX)
        except Exception as error:
            if not loading:
                raise _refusal(module, decoder, hidden_BLX, error) from error
            return
    if not loading and decoder.rope[index] not in decoder.checked:
        _compare(module, decoder, hidden_BLX)
        decoder.checked.add(decoder.rope[index])


@torch.no_grad()
def _compare(module: Any, decoder: DecoderState, hidden_1LX: Tensor) -> None:
    """ValueError with the reason unless the patched `module` gives its stock class's output for `hidden_1LX`."""
    stock = stock_class(module)
    pos = torch.arange(hidden_1LX.shape[1], device=hidden_1LX.device)[None]
    kwargs: dict[str, Any] = {
        "attention_mask": eager_causal(hidden_1LX) if decoder.base_attention == "eager" else None,
        "position_ids": pos,
    }
    try:
        with evaluating(module), _plain_inner(module, decoder):
            rope = decoder.rotation(module, hidden_1LX, pos)
            step = Step((rope.cos, rope.sin), pos, False, False)
            truth = stock.forward(module, hidden_1LX, position_embeddings=step.embeddings, **kwargs)[0]
            plain = dataclasses.replace(decoder, method=_CausalOnly(), step=None)  # type: ignore[arg-type]
            kwargs["longctx"] = plain, step, None
            forward = unrotated(stock.forward)
            ours = forward(module, hidden_1LX, position_embeddings=step.identity, **kwargs)[0]
            pieces = _in_pieces(module, plain, hidden_1LX, rope, kwargs)
            decoder.joined = plain.joined
    except Exception as error:
        raise _refusal(module, decoder, hidden_1LX, error) from error
    device = hidden_1LX.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_1LX.dtype
    for out, words in (
        (
            ours,
            "with un-rotated keys its output differs by {} (relative). It probably post-processes rotated keys, e.g. "
            "normalises them",
        ),
        (
            pieces,
            "through a cache of first tokens and a window its output differs by {} (relative), so it does more with "
            "cached keys than attend",
        ),
    ):
        off = relative_error(out, truth)
        if not off <= layer_tolerance(dtype):
            raise ValueError(
                f"{stock.__name__} failed the parity check: {words.format(f'{off:.1e}')}. hf_longctx does not support "
                f"this model."
            )


def _in_pieces(
    module: Any, decoder: DecoderState, hidden_1LX: Tensor, rope: Rotation, kwargs: dict[str, Any]
) -> Tensor:
    """The layer's output for `hidden_1LX` in chunks and single tokens, through a cache of first tokens and a window.

    Sets `decoder.joined` where the layer changes keys or values after the cache: its first tokens must come with them.
    """
    stock: Any = stock_class(module)
    method: Any = decoder.method
    forward, outputs = unrotated(stock.forward), []
    method.cache = layer = _Watched(method, decoder.joined)
    cache = given_cache(stock.forward, Cache(layers=[layer] * (module.layer_idx + 1)))
    for start, stop in PIECES:
        pos = kwargs["position_ids"][:, start:stop]
        step = Step((rope.cos[:, start:stop], rope.sin[:, start:stop]), pos, False, False)
        if stop - start == 1:
            roll([layer])
        layer.open()
        layer.push(pos, False)
        given = {**kwargs, **cache, "position_ids": pos, "attention_mask": None, "longctx": (decoder, step, layer)}
        outputs.append(forward(module, hidden_1LX[:, start:stop], position_embeddings=step.identity, **given)[0])
        layer.close()
    method.cache = None
    if layer.changed and not decoder.joined:
        decoder.joined = True
        return _in_pieces(module, decoder, hidden_1LX, rope, kwargs)
    return torch.cat(outputs, 1)


@functools.cache
def check_rotary_function(stock: Any, function: Callable[..., Any]) -> None:
    """ValueError unless a model's rotary function takes (q, k, cos, sin, ...), which is how we call it."""
    names = list(inspect.signature(function).parameters)
    if names[2:4] != ["cos", "sin"]:
        raise ValueError(
            f"{stock.__name__}: hf_longctx cannot keep its keys un-rotated: keys are rotated by "
            f"apply_rotary_pos_emb({', '.join(names)}), not by one that takes (q, k, cos, sin). hf_longctx does not "
            f"support this model."
        )


def _refusal(module: Any, decoder: DecoderState, hidden_BLX: Tensor, error: Exception) -> ValueError:
    """Why a layer's forward failed in the check, in words where the reason is known."""
    name = stock_class(module).__name__
    sliced = _sliced(module, decoder, hidden_BLX)
    if sliced is not None:
        return ValueError(
            f"{name}: hf_longctx cannot keep its keys un-rotated: only a slice of each head rotates, cut off before "
            f"its apply_rotary_pos_emb ({sliced[0]} of {sliced[1]} dimensions). hf_longctx does not support this model."
        )
    return ValueError(
        f"{name}: hf_longctx cannot keep its keys un-rotated; its attention raised {type(error).__name__}: {error}"
    )


def _sliced(module: Any, decoder: DecoderState, hidden_BLX: Tensor) -> tuple[int, int] | None:
    """(rotary dims, head dim) of a layer whose rotary function fails on whole heads, else None."""
    head_dim = head_dim_of(module)
    with contextlib.suppress(Exception):  # whatever fails here is not the reason looked for
        rope = decoder.rotation(module, hidden_BLX, torch.zeros(1, 1, dtype=torch.long, device=hidden_BLX.device))
        rotary_dim = rope.cos.shape[-1]
        if rotary_dim < head_dim:
            try:
                rope(hidden_BLX.new_zeros(1, 1, 1, head_dim))
            except RuntimeError:
                return rotary_dim, head_dim
    return None


def head_dim_of(module: Any) -> int:
    """The width of an attention module's heads."""
    config = module.config
    return int(getattr(module, "head_dim", None) or config.hidden_size // config.num_attention_heads)


@contextlib.contextmanager
def _plain_inner(module: Any, decoder: DecoderState) -> Iterator[None]:
    """Compare through sdpa where the inner implementation wants a mask or a dtype of its own: rotation is checked."""
    config = vars(module.config)
    before = config["_attn_implementation_internal"]
    if decoder.base_attention not in PLAIN:
        config["_attn_implementation_internal"] = Implementation("sdpa")
    try:
        yield
    finally:
        config["_attn_implementation_internal"] = before
