"""A copy of a model compiles a forward of its own (entry 0010)."""

from __future__ import annotations

from typing import Any

CALL = "_compiled_call"


def of_its_own(stock: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    """In the place of `PreTrainedModel.get_compiled_call`: forget a call that is bound to another model."""
    called = getattr(vars(model).get(CALL), "_torchdynamo_orig_callable", None)
    if getattr(called, "__self__", model) is not model:
        del vars(model)[CALL]
    return stock(model, *args, **kwargs)
