"""A callback for the import of a module that hf_longctx does not import itself: transformers, peft.

A finder on `sys.meta_path` that finds nothing by itself: it lets the others find, and puts a loader around theirs that
calls back once the module has been executed. The module keeps its own loader (`inspect`, `runpy`, `pkgutil` and
`importlib.reload` see that one), and no loader that may be shared, such as a zip file's, is changed.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any


class WhenImported(importlib.abc.MetaPathFinder):
    """While started, `call(name)` runs after each execution of the modules `names`, and at once for imported ones.

    Args:
        names: Full names of modules.
        call: Gets a module's name. For a module that is half imported at the start (its import has led here), it is
            called later, before the next import of any module.
    """

    def __init__(self, names: Iterable[str], call: Callable[[str], None]) -> None:
        self.names = frozenset(names)
        self.call = call
        self._waiting: set[str] = set()  # those whose call is still to come
        self._finding = threading.local()  # names that this thread is looking for

    def start(self) -> None:
        """Call from now on, and for modules that are imported already. Starting twice changes nothing."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        self._waiting = set(self.names)
        for name in self.names:
            if sys.modules.get(name) is not None:
                importlib.import_module(name)  # another thread may be importing it: wait for its end
        self._look()

    def stop(self) -> None:
        """Call no more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The spec that the other finders find, with a loader that calls back."""
        if self._waiting:
            self._look()  # at modules that another finder has found, or that came before this one was in place
        if name not in self.names or name in vars(self._finding):
            return None
        vars(self._finding)[name] = True  # other finders that ask every finder, too, ask this one again
        try:
            finders = (getattr(finder, "find_spec", None) for finder in list(sys.meta_path) if finder is not self)
            spec = next((spec for find in finders if find is not None and (spec := find(name, path, target))), None)
        finally:
            del vars(self._finding)[name]
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, self)
        return spec

    def _look(self) -> None:
        for name in list(self._waiting):
            module = sys.modules.get(name)
            if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
                self._called(name)

    def _called(self, name: str) -> None:
        if self not in sys.meta_path:
            return  # stopped meanwhile
        self._waiting.discard(name)  # before the call, which may import
        self.call(name)


class _Loader:
    """Another finder's loader, with a call after the module's execution."""

    def __init__(self, loader: Any, watch: WhenImported) -> None:
        self._loader, self._watch = loader, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self).get("_loader"), name)  # not self._loader: a copy in the making has none

    def exec_module(self, module: Any) -> None:
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        name: str = module.__name__
        if sys.modules.get(name) is module:  # else a private copy
            self._watch._called(name)
