"""Classes of transformers with methods: made from the stock ones by name, so that there is no list of them to keep."""

from __future__ import annotations

import transformers
from transformers import GenerationMixin, PreTrainedModel

from ..hub import shim
from ..near import did_you_mean
from ..upstream.conversions import share_conversions
from .base import LongCtx

_made: dict[str, type[PreTrainedModel]] = {}


def class_of(name: str) -> type[PreTrainedModel]:
    """The class `LongCtx...` of this name.

    Raises:
        AttributeError: transformers has no such model class.
    """
    if name in _made:
        return _made[name]
    stock_name = name.removeprefix(shim.PREFIX)
    stock = getattr(transformers, stock_name, None)
    if stock is None:
        reason = "does not exist"
    elif getattr(stock, "is_dummy", False):
        reason = "needs packages that are not installed"
    elif not (isinstance(stock, type) and issubclass(stock, PreTrainedModel)):
        reason = "is no model class"
    elif stock.__init__ is PreTrainedModel.__init__:  # type: ignore[misc]
        reason = "is a base of model classes, and no model by itself"
    else:
        return _made.setdefault(name, made_from(stock))  # one class, also where two threads ask at once
    raise AttributeError(
        f"hf_longctx.models has no {name}: {stock_name} {reason} in transformers {transformers.__version__}. "
        f"{did_you_mean(name, names())}Give LongCtx and the name of a model class, such as LongCtxLlamaForCausalLM."
    )


def made_from(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A new class `LongCtx` + the name of `stock`."""
    name = shim.class_name(stock.__name__)
    # GenerationMixin is named once more because AutoModel makes a class of its own of every trusted one that has its
    # own way to prepare inputs and does not name it
    bases: tuple[type, ...] = (LongCtx, stock, *([GenerationMixin] if issubclass(stock, GenerationMixin) else []))
    body = {
        "__module__": __package__,
        "__qualname__": name,
        "__doc__": f"{stock.__name__} with the methods that its config names, see `hf_longctx.models.LongCtx`.",
        "stock_class": stock,
        "_auto_class": None,
    }
    share_conversions(stock.__name__, name)
    return type(name, bases, body)


def names() -> list[str]:
    """The names of the classes for causal language models, for completion and for hints."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    known = (name for value in CAUSAL.values() for name in ([value] if isinstance(value, str) else value))
    return sorted({shim.class_name(name) for name in known})
