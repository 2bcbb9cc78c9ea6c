"""One thread at a time loads a model (entry 0016)."""

from __future__ import annotations

import threading
from typing import Any

_loading = threading.RLock()  # loading a model may load another


def one_at_a_time(stock: Any, *args: Any, **kwargs: Any) -> Any:
    """In the place of `PreTrainedModel.from_pretrained`, which sets what the whole process shares."""
    with _loading:
        return stock(*args, **kwargs)
