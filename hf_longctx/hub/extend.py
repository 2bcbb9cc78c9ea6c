"""From a stock checkpoint to one that carries a method."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .resolve import load
from .save import check_target, save

if TYPE_CHECKING:
    from ..registry import Recorded


def extend(
    model: str | os.PathLike[str],
    method: Recorded,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    plugin: bool = False,
) -> Path:
    """Save `model` (see `load`) in its own dtype into `out`, with `method` in its config.

    A method is applied first, so a model that it refuses is refused here. `from_pretrained(out)` has it active wherever
    hf_longctx is imported, and `from_pretrained(out, trust_remote_code=True)` imports it (not with `plugin`, see
    `save`); elsewhere it gives the stock model. A native method (RoPE scaling) is active everywhere. The
    settings of a procedure (`XL3M`) are in `generation_config.json`, for `custom_generate=xl3m`.
    """
    # Before the model is loaded: a mistake should not cost a download.
    check_target(out, overwrite=overwrite)
    loaded, tokenizer = load(model, dtype="checkpoint", device="cpu")
    method.store_(loaded)
    return save(loaded, tokenizer, out, overwrite=overwrite, plugin=plugin)
