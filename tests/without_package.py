"""Imported first in a process, makes hf_longctx a package that is not installed there."""

from __future__ import annotations

import importlib.abc
import sys
from typing import Any


class Hidden(importlib.abc.MetaPathFinder):
    """Finds no hf_longctx, before others do."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "hf_longctx":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Hidden())
