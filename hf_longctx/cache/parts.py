"""A model's tower and attention layers, found once: looking for them takes longer than planning a small edit.

They are remembered with every module below the model and its class. Whatever puts in another module or changes a class
(a method of ours, PEFT, quantisation) has them looked for anew.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn

from ..anatomy import attention_layers, find_tower

_known: WeakKeyDictionary[nn.Module, _Parts] = WeakKeyDictionary()  # of each model


def parts_of(model: Any) -> tuple[Any, list[Any]]:
    """The tower of a model and its attention layers, in order. ValueError as `find_tower`."""
    now = every_module(model)
    known = _known.get(model)
    if known is None or not known.are(now):
        _known.pop(model, None)
        tower = find_tower(model)
        known = _known[model] = _Parts(now, tower, attention_layers(tower))
    return known.tower(), [module() for module in known.attention]


def every_module(root: nn.Module) -> list[nn.Module]:
    """What `root.modules()` finds, shared ones each time they are met, in a tenth of the time."""
    found = [root]
    for module in found:  # grows as it goes
        found += [child for child in module._modules.values() if child is not None]
    return found


class _Parts:
    """Weak references: a model may be its own tower, and is to go when nobody else wants it."""

    def __init__(self, modules: list[nn.Module], tower: nn.Module, attention: list[nn.Module]) -> None:
        self.modules = [ref(module) for module in modules]
        self.classes = [type(module) for module in modules]
        self.tower, self.attention = ref(tower), [ref(module) for module in attention]

    def are(self, modules: list[nn.Module]) -> bool:
        """Is every module where it was, and what it was?"""
        return len(modules) == len(self.modules) and all(
            known() is module and cls is type(module)
            for known, cls, module in zip(self.modules, self.classes, modules, strict=True)
        )
