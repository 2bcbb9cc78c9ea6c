"""The ways of reading a text of some length: the stock model and each method, what it sees and how far it reaches."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ..anatomy import find_decoder, full_attention_layers
from ..attention.method import AttentionMethod
from ..method import LongContextMethod
from ..methods.giraffe import Giraffe
from ..methods.lm_infinite import LMInfinite
from ..methods.rope_scaling import RopeScaling
from ..methods.streaming_llm import StreamingLLM
from ..patch import Patch
from .predict import Job, Prediction, fits, predict
from .shape import Layer, Shape, keyed_layers

REACH = 4  # times the trained length: as far as scaled frequencies are worth it (README, methods)
UNTRAINED = "meant for fine-tuning on long text, weak without"
LONGEST = 10**7  # tokens; a text that is longer is not looked for


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way of reading.

    Args:
        name: "stock", or the method as it was asked for.
        method: with its window filled in; None is the stock model.
        sees: in words, what a token can use of the text before it.
        whole: whether every token sees the whole text before it.
        obstacle: why it cannot serve this length, whatever the memory; "" if it can.
        remark: what else to know, e.g. that it wants training.
        prediction: None if the method refuses the model.
        fits: within the memory.
        longest_tokens: the longest text that fits the memory; None: over `LONGEST`.
        shape: the sizes it was predicted from; None if the method refuses the model.
    """

    name: str
    method: LongContextMethod | None
    sees: str
    whole: bool = False
    obstacle: str = ""
    remark: str = ""
    prediction: Prediction | None = None
    fits: bool = False
    longest_tokens: int | None = 0
    shape: Shape | None = dataclasses.field(default=None, repr=False)


def name_of(method: LongContextMethod) -> str:
    """The method with the fields that are not at their defaults."""
    fields = [(f.name, getattr(method, f.name), f.default) for f in dataclasses.fields(method)]
    return f"{type(method).__name__}({', '.join(f'{name}={value}' for name, value, usual in fields if value != usual)})"


def candidates(tokens: int, trained: int | None) -> list[LongContextMethod | None]:
    """What is looked at when no method is asked for: those that see most of the text first."""
    found: list[LongContextMethod | None] = [None]
    if trained is not None and trained < tokens <= REACH * trained:
        # without training ntk finds most, at twice the factor that the length asks for (zero_shot_best.json)
        found += [RopeScaling(type="ntk", factor=2 * math.ceil(tokens / trained)), Giraffe()]
    return [*found, LMInfinite(top_k=5), LMInfinite(), StreamingLLM()]


def assess(method: LongContextMethod | None, model: Any, stock: Shape, job: Job, chunk: int | None) -> Option:
    """Everything about one way of reading. `model` is on the meta device and left as it is."""
    name = "stock" if method is None else name_of(method)
    if method is None:
        shape, whole, sees = stock, *_sight(None, stock, job.tokens)
        obstacle, remark = _beyond(stock.trained, job.tokens, "it was trained for"), ""
    else:
        try:
            _try(method, model)
            method, shape = as_read(method, model, stock)
        except (ValueError, NotImplementedError) as error:
            return Option(name=name, method=method, sees="", obstacle=" ".join(str(error).split()))
        whole, sees = _sight(method, shape, job.tokens)
        obstacle, remark = _beyond(_reach(method, stock), job.tokens, f"{type(method).__name__} reaches"), ""
        if isinstance(method, Giraffe):
            remark = UNTRAINED
    prediction = predict(shape, job, chunk)
    return Option(
        name=name, method=method, sees=sees, whole=whole, obstacle=obstacle, remark=remark, prediction=prediction,
        fits=prediction.peak_bytes <= job.memory_bytes, longest_tokens=longest(shape, job, chunk),
        shape=shape,
    )  # fmt: skip


def longest(shape: Shape, job: Job, chunk: int | None) -> int | None:
    """The most tokens that fit, to 1 %; None where `LONGEST` do, 0 where not even one does."""

    def fit(tokens: int) -> bool:
        return fits(shape, dataclasses.replace(job, tokens=tokens), chunk)

    if fit(LONGEST):
        return None
    low, high = 0, LONGEST
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if fit(middle) else (low, middle)
    return low


def _try(method: LongContextMethod, model: Any) -> None:
    """Install the method and undo it: it refuses a model that it cannot serve, and says why. Nothing is logged."""
    decoder = find_decoder(model)
    patch = Patch(method=method, model=decoder)
    with patch.recording():
        method.install(patch, decoder)
    patch.undo()


def as_read(method: LongContextMethod, model: Any, stock: Shape) -> tuple[LongContextMethod, Shape]:
    """The method with its window filled in, and the model's sizes as it reads: the method's own cache layers say."""
    decoder: Any = find_decoder(model)
    method = method.resolve(decoder.config)
    if not isinstance(method, AttentionMethod):
        return method, stock
    full, layers = full_attention_layers(decoder), Counter[Layer]()
    for module, layer in zip(keyed_layers(decoder), stock.each, strict=True):
        if any(module is other for other in full):
            cache: Any = method.cache_layer(module)
            grows = getattr(cache, "n_last", None) is None
            kept = None if grows else cache.n_first + cache.n_last
            top_k = getattr(method, "top_k", 0) if grows else 0
            window = getattr(method, "n_local", None) if top_k else None
            layer = dataclasses.replace(
                layer, kept=kept, span=window if kept is None else kept + 1, ours=True, top_k=top_k,
                on_host=getattr(cache, "on_host", False),
            )  # fmt: skip
        layers[layer] += 1
    return method, dataclasses.replace(stock, layers=tuple(layers.items()))


def _sight(method: LongContextMethod | None, shape: Shape, tokens: int) -> tuple[bool, str]:
    """Whether every token sees the whole text, and what it sees in words."""
    ours = [layer for layer, _ in shape.layers if layer.ours]
    window = min((layer.span for layer in ours if layer.span is not None), default=None)
    if window is None or tokens <= window:
        return True, "the whole text"
    top_k = max(layer.top_k for layer in ours)
    first = getattr(method, "n_global", None) or getattr(method, "n_sink", 0)
    near = f"the first {first} and the last {getattr(method, 'n_local', None) or getattr(method, 'window', window):,}"
    if top_k:
        return False, f"{near} tokens, and looks up {top_k} others a head wherever they are"
    return False, f"{near} tokens; forgets what lies between"


def _reach(method: LongContextMethod, stock: Shape) -> int | None:
    """The tokens up to which a method makes sense; None: any number."""
    if isinstance(method, AttentionMethod) and method.name != "position_free":
        return None
    if stock.trained is None:
        return None
    times = getattr(method, "factor", None) or (REACH if method.native else 1)
    halved = getattr(method, "type", None) == "ntk"  # see `candidates`
    return int(stock.trained * (max(times / 2, 1) if halved else times))


def _beyond(reach: int | None, tokens: int, what: str) -> str:
    if reach is None or tokens <= reach:
        return ""
    return f"breaks down beyond the {reach:,} tokens {what}"
