"""YaRN reads `truncate` of a layer type's own rope_parameters (entry 0005)."""

from __future__ import annotations

import copy
from typing import Any


def per_layer_type(stock: Any, config: Any, device: Any = None, *, layer_type: str | None = None, **kwargs: Any) -> Any:
    """In the place of `ROPE_INIT_FUNCTIONS["yarn"]`: the stock one finds `truncate` where it looks for it."""
    own = (config.rope_parameters or {}).get(layer_type) if layer_type is not None else None
    if own is not None:
        config = copy.copy(config)  # the caller's stays as it is
        vars(config)["rope_parameters"] = {**config.rope_parameters, "truncate": own.get("truncate", True)}
    return stock(config, device, layer_type=layer_type, **kwargs)
