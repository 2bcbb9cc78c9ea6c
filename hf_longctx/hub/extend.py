"""From a stock checkpoint to one that carries a method."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .resolve import load
from .save import check_target, save

if TYPE_CHECKING:
    from ..generation.xl3m import XL3M
    from ..method import LongContextMethod


def extend(
    model: str | os.PathLike[str],
    method: LongContextMethod | XL3M,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Path:
    """Save `model` (see `load`) in its own dtype into `out`, with `method` in its config.

    The method is applied first, so a model it refuses is refused here. `from_pretrained(out)` has the method active
    wherever hf_longctx is imported; elsewhere it gives the stock model. A native method (RoPE scaling) is active
    everywhere. `XL3M` changes no model: its settings are in `generation_config.json`, for `custom_generate=xl3m`.
    """
    from ..generation.xl3m import XL3M

    # Before the model is loaded: a mistake should not cost a download.
    check_target(out, overwrite=overwrite)
    loaded, tokenizer = load(model, dtype="checkpoint", device="cpu")
    if isinstance(method, XL3M):
        method.store_(loaded)
    else:
        method.apply(loaded)
    return save(loaded, tokenizer, out, overwrite=overwrite)
