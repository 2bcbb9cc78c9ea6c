"""The ways of reading a text of some length: the stock model and each method, what it sees and how far it reaches."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ..anatomy import attention_layers, find_decoder, full_attention_layers
from ..method import LongContextMethod
from ..patch import Patch
from ..registry import list_methods
from . import account
from .predict import Job, Prediction, fits, predict
from .shape import Layer, Shape

UNTRAINED = "meant for fine-tuning on long text, weak without"
LONGEST = 10**7  # tokens; a text that is longer is not looked for


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way of reading.

    Args:
        name: "stock", or the method as it was asked for.
        method: With its window filled in; None is the stock model.
        sees: In words, what a token can use of the text before it.
        whole: Whether every token sees the whole text before it.
        obstacle: Why it cannot serve this length, whatever the memory; "" if it can.
        remark: What else to know, e.g. that it wants training.
        prediction: None if the method refuses the model.
        fits: Within the memory.
        longest_tokens: The longest text that fits the memory; None: over `LONGEST`.
        shape: The sizes it was predicted from; None if the method refuses the model.
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


def candidates(model: Any, stock: Shape, job: Job, chunk: int | None) -> list[Option]:
    """The stock model and what every method proposes for this length. Those that see most of the text come first."""
    kinds = [cls for cls in list_methods().values() if issubclass(cls, LongContextMethod)]
    proposed = [method for cls in kinds for method in cls.proposals(job.tokens, stock.trained)]
    found = [assess(method, model, stock, job, chunk) for method in proposed]

    def forgets(option: Option) -> tuple[bool, bool, bool]:
        assert option.method is not None
        bounded = option.shape is not None and option.shape.bounded
        return option.method.endless, not option.method.training_free, bounded

    return [assess(None, model, stock, job, chunk), *sorted(found, key=forgets)]


def assess(method: LongContextMethod | None, model: Any, stock: Shape, job: Job, chunk: int | None) -> Option:
    """Everything about one way of reading. `model` is on the meta device and left as it is."""
    name, shape, whole, sees, remark = "stock", stock, True, "the whole text", ""
    reach, what = stock.trained, "it was trained for"
    if method is not None:
        name = name_of(method)
        try:
            _try(method, model)
            method, shape = as_read(method, model, stock)
        except (ValueError, NotImplementedError) as error:
            return Option(name=name, method=method, sees="", obstacle=" ".join(str(error).split()))
        whole = shape.span is None or job.tokens <= shape.span
        sees = sees if whole else method.sees()
        remark = "" if method.training_free else UNTRAINED
        decoder: Any = find_decoder(model)
        reach, what = method.reach(decoder.config), f"{type(method).__name__} reaches"
    beyond = reach is not None and job.tokens > reach
    prediction = predict(shape, job, chunk)
    return Option(
        name=name,
        method=method,
        sees=sees,
        whole=whole,
        obstacle=f"breaks down beyond the {reach:,} tokens {what}" if beyond else "",
        remark=remark,
        prediction=prediction,
        fits=prediction.peak_bytes <= job.memory_bytes,
        longest_tokens=longest(shape, job, chunk),
        shape=shape,
    )


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
    anchor = method.anchor(model)
    patch = Patch(method=method, model=anchor)
    with patch.recording():
        method.install(patch, anchor)
    patch.undo()


def as_read(method: LongContextMethod, model: Any, stock: Shape) -> tuple[LongContextMethod, Shape]:
    """The method with its window filled in, and the model's sizes as it reads, which its footprints say."""
    decoder: Any = find_decoder(model)
    method = method.resolve(decoder.config)
    layers = Counter[Layer]()
    modules, full = attention_layers(decoder), set(full_attention_layers(decoder))
    for place, layer in stock.each:
        mark = method.footprint(modules[place]) if modules[place] in full else None
        if mark is not None:
            coded = account.code_bytes(layer.kv_heads, layer.head_dim) if mark.coded else 0
            layer = dataclasses.replace(
                layer, kept=mark.kept, span=mark.span, patched=True, top_k=mark.looked_up, on_host=mark.on_host,
                # of latent attention a cache hands on all that it keeps
                twice=None if layer.expansion else mark.twice, code_bytes=coded, shortlist=mark.shortlist,
            )  # fmt: skip
        layers[layer] += 1
    return method, dataclasses.replace(stock, layers=tuple(layers.items()))
