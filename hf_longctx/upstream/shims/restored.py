"""`apply_patches` puts the classes back after an exception, too (entry 0008)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def restored(stock: Any, *args: Any, **kwargs: Any) -> Iterator[None]:
    """In the place of `monkey_patching.apply_patches`, which restores after a clean exit only."""
    manager = stock(*args, **kwargs)
    manager.__enter__()
    try:
        yield
    finally:
        manager.__exit__(None, None, None)
