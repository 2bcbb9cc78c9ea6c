"""The self-check: does attention over un-rotated keys give what the model's own attention gives?

Families differ in ways that no attribute shows (some normalise after rotating, some rotate only a slice, some leave
layers un-rotated). A few tokens through a layer settle it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..cache.rolling import roll
from ..cache.sink_window import SinkWindowLayer
from ..cache.slots import KeyValues
from ..ops.branch import Branch
from ..ops.checked import layer_tolerance, relative_error
from ..ops.masks import BeyondWindow, Causal, Mask, Window
from ..ops.positions import Positions
from ..ops.rotation import Rotation
from ..settings import ATTENTION_NAMES
from ..upstream.caches import given_cache
from .base_attention import PLAIN
from .call import LayerCall
from .inputs import AttentionInputs
from .state import DecoderState, Step, kind_of_call, known_of, source_of
from .subclass import stock_class
from .unrotated import unrotated
from .watch import Found, arguments, evaluating, look
from .ways import INTERFACE, OWN, TORCH, named, reach_of

TOKENS, WINDOW = 11, 5  # of the check; a length that no count of heads has, so that dims of tensors can be told apart
PIECES = (0, 4), (4, 9), (9, 10), (10, 11)
SHIFT = 64  # positions further, where scores that depend on distances alone are the same


class Refused(ValueError):
    """A model that the self-check refuses."""


class _Changed(Exception):
    """A layer attends to something other than what its cache returned."""


class _CausalOnly:
    """What a method is to the attention function, with nothing changed: plain causal attention in one branch.

    Over a cache in two: the last `WINDOW` tokens, and the first ones that the cache keeps apart.
    """

    name = "parity check"
    cache: _Watched | None = None
    softcap: float | None = None

    def angles(self, decoder: DecoderState, pos_BL: Tensor) -> None:
        """The model's own."""

    def attention(self, inputs: AttentionInputs) -> Tensor:
        """See `AttentionMethod`."""
        self.softcap = inputs.softcap
        if self.cache is None or inputs.sinks is None:
            q_rope, k_rope = inputs.true_ropes()
            return inputs.attend([_branch(inputs, inputs.keys, Causal(), q_rope, k_rope)])
        self.cache.compare(inputs.keys)
        q_rope = inputs.rotation(inputs.q_pos_BL)
        split = (inputs.keys, Window(WINDOW)), (inputs.sinks, BeyondWindow(WINDOW))
        return inputs.attend([_branch(inputs, keys, mask, q_rope, inputs.rotation(keys.pos)) for keys, mask in split])


def _branch(
    inputs: AttentionInputs, keys: KeyValues, mask: Mask, q_rope: Rotation | None, k_rope: Rotation | None
) -> Branch:
    """A branch of which no kernel knows more than the positions: so the plain ones do it."""
    return Branch(inputs.q_BHLD, keys.k, keys.v, Positions(inputs.q_pos_BL, keys.pos), mask, q_rope, k_rope)


class _Watched(SinkWindowLayer):
    """The cache of the check: a whole text of its length, in first tokens and a window."""

    def __init__(self, owner: Any, joined: bool) -> None:
        super().__init__(owner, n_first=TOKENS - WINDOW, n_last=WINDOW - 1)
        self.joined = joined

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.returned = super().update(*args, **kwargs)
        return self.returned

    def compare(self, keys: KeyValues) -> None:
        """Raise `_Changed` where a layer that does not get its sinks attends to something other than it got."""
        if not self.joined and (keys.k is not self.returned[0] or keys.v is not self.returned[1]):
            raise _Changed


class _OneLayer:
    """A cache whose every layer is this one."""

    def __init__(self, layer: _Watched) -> None:
        self.layer = layer

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.layer.update(keys, values)

    def get_seq_length(self, *args: Any) -> int:
        return self.layer.seen


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


def check_layer(
    module: Any, decoder: DecoderState, hidden_BLX: Tensor, embeddings: Any, kwargs: dict[str, Any]
) -> Found:
    """Learn what a layer does, and compare one layer of each kind with its stock class. Once for a layer.

    `hidden_BLX`, `embeddings` (or None) and `kwargs` are what the model hands to it. Raises `Refused`, with the reason.
    On the meta device, while a model is being loaded, there is nothing to compare; that waits for the first forward.
    """
    stock, known = stock_class(module), known_of(module)
    reach = reach_of(stock)
    kind, more = kind_of_call(reach, embeddings, kwargs), dict(reach.numbers(kwargs))
    hidden = probe(hidden_BLX.shape[-1], hidden_BLX.device, hidden_BLX.dtype)
    loading = hidden.device.type == "meta"
    handed = None
    try:
        if embeddings is not None:
            pos = torch.arange(TOKENS, device=hidden.device)[None]
            handed = decoder.embeddings(module, hidden, pos)
        found = known[kind] if kind in known else look(module, hidden, handed, more)
    except Exception as error:
        raise _refusal(module, error) from error
    if not loading:
        if (stock, found) not in decoder.checked:
            right = _compared(module, decoder, hidden, handed, more, found)
            decoder.checked[stock, found] = dataclasses.replace(right, checked=True)
        found = decoder.checked[stock, found]
    known[kind] = found
    return found


def _compared(
    module: Any, decoder: DecoderState, hidden: Tensor, embeddings: Any, numbers: dict[str, Any], found: Found
) -> Found:
    """`found` with the layout that gives the stock class's output."""
    if not found.lends:  # there are no keys of its own to compare with; those that lend have been here before
        right = (other.layouts for other in decoder.checked.values() if set(other.layouts) & set(found.layouts))
        return dataclasses.replace(found, layouts=next(right, found.layouts[:1]))
    layouts = found.layouts
    candidates = [dataclasses.replace(found, layouts=(layout,)) for layout in layouts] or [found]
    for candidate in candidates:
        try:
            _compare(module, decoder, hidden, embeddings, numbers, candidate)
        except Refused:
            if candidate is candidates[-1]:
                raise
        else:
            return candidate
    raise AssertionError


@torch.no_grad()
def _compare(
    module: Any, decoder: DecoderState, hidden_1LX: Tensor, embeddings: Any, numbers: dict[str, Any], found: Found
) -> None:
    """`Refused`, with the reason, unless the patched `module` gives its stock class's output for `hidden_1LX`."""
    stock = stock_class(module)
    reach = reach_of(stock)
    way = reach.way
    pos = torch.arange(hidden_1LX.shape[1], device=hidden_1LX.device)[None]
    eager = way == OWN or (way == INTERFACE and decoder.base_attention == "eager")
    kwargs = {"attention_mask": eager_causal(hidden_1LX) if eager else None, "position_ids": pos, **numbers}
    kwargs = reach.taken(arguments(stock, kwargs, found.lender))
    method: Any = _CausalOnly()
    plain = dataclasses.replace(decoder, method=method, steps=[], lent={}, opened=[])
    try:
        with evaluating(module), _plain_inner(module, decoder):

            def original(at: Tensor) -> Tensor:
                handed = None if embeddings is None else decoder.embeddings(module, hidden_1LX, at)
                more = reach.taken({**kwargs, "position_ids": at, **reach.given(handed)})
                with named(module, "sdpa") if way == TORCH else contextlib.nullcontext():
                    return stock.forward(module, hidden_1LX, **more)[0]

            truth = original(pos)
            step = _step_of(plain, embeddings, hidden_1LX, pos)
            call = LayerCall(plain, step, found)
            kwargs["attention_mask"] = None
            more = {**kwargs, **reach.given(embeddings)}
            ours = reach.run(unrotated(stock.forward), module, call, hidden_1LX, more)[0]
            try:
                pieces = _in_pieces(module, plain, hidden_1LX, embeddings, kwargs, found)
            except _Changed:
                decoder.joined = plain.joined = True
                pieces = _in_pieces(module, plain, hidden_1LX, embeddings, kwargs, found)
            tolerance = layer_tolerance(_dtype(hidden_1LX))
            if not max(relative_error(ours, truth), relative_error(pieces, truth)) <= tolerance:
                moved = relative_error(original(pos + SHIFT), truth)
    except Exception as error:
        raise _refusal(module, error) from error
    off, in_pieces = relative_error(ours, truth), relative_error(pieces, truth)
    if not off <= tolerance:
        why = f"with un-rotated keys its output differs by {off:.1e} (relative). "
        if method.softcap is not None and decoder.base_attention == "sdpa":
            why = (
                f"this transformers' sdpa attention leaves out the soft-capping of scores ({method.softcap}) that the "
                f"model asks for. Load it with attn_implementation='eager'"
            )
        elif moved > tolerance:
            why += (
                f"Its scores depend on absolute positions, not on distances alone: moved by {SHIFT} positions, the "
                f"stock layer's output differs by {moved:.1e}. Weights for each dimension after rotating, of a norm "
                f"or a scale, do that"
            )
        else:
            why += "It does more with rotated queries and keys, or with its mask, than attend"
    elif not in_pieces <= tolerance:
        why = (
            f"through a cache of first tokens and a window its output differs by {in_pieces:.1e} (relative), so it "
            f"does more with cached keys than attend"
        )
    else:
        return
    raise Refused(f"{stock.__name__} failed the parity check: {why}. hf_longctx does not support this model as it is.")


def _dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _step_of(decoder: DecoderState, embeddings: Any, hidden: Tensor, pos: Tensor) -> Step:
    like = hidden if embeddings is None else decoder.parts(embeddings)[0]
    return Step(source_of(embeddings), like, pos, pos, False, False, pos.shape[1])


def _in_pieces(
    module: Any, decoder: DecoderState, hidden_1LX: Tensor, embeddings: Any, kwargs: dict[str, Any], found: Found
) -> Tensor:
    """The layer's output for `hidden_1LX` in chunks and single tokens, through a cache of first tokens and a window.

    Raises `_Changed` where the layer changes keys or values after the cache: its first tokens must come with them.
    """
    stock: Any = stock_class(module)
    method: Any = decoder.method
    reach, outputs = reach_of(stock), []
    method.cache = layer = _Watched(method, decoder.joined)
    cache = given_cache(stock.forward, _OneLayer(layer))
    for start, stop in PIECES:
        pos = torch.arange(start, stop, device=hidden_1LX.device)[None]
        some = None if embeddings is None else decoder.embeddings(module, hidden_1LX[:, start:stop], pos)
        if stop - start == 1:
            roll([layer])
        call = LayerCall(decoder, _step_of(decoder, some, hidden_1LX, pos), found)
        call.open(layer)
        more = reach.taken({**kwargs, **cache, "position_ids": pos, **reach.given(some)})
        outputs.append(reach.run(unrotated(stock.forward), module, call, hidden_1LX[:, start:stop], more)[0])
        layer.close()
    method.cache = None
    decoder.opened.clear()
    return torch.cat(outputs, 1)


def _refusal(module: Any, error: Exception) -> Refused:
    """Why a layer's forward failed in the check."""
    if isinstance(error, Refused):
        return error
    return Refused(
        f"{stock_class(module).__name__}: hf_longctx cannot keep its keys un-rotated; its attention raised "
        f"{type(error).__name__}: {error}"
    )


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
        config["_attn_implementation_internal"] = ATTENTION_NAMES["sdpa"]
    try:
        yield
    finally:
        config["_attn_implementation_internal"] = before
