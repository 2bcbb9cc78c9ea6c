"""A model's decoder and attention layers, found once: looking for them takes longer than planning a small edit.

They are remembered with every module below the model and its class. They are looked for again once another module was
put in or a class was changed (by a method of hf_longctx, PEFT, quantisation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

from torch import nn

from ..anatomy import attention_layers, find_decoder

_known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()  # of each model


class ModelParts(NamedTuple):
    """The decoder of a model, its attention layers in order, and every module of the decoder."""

    decoder: Any
    attention: list[Any]
    everything: Sequence[Any]


def parts_of(model: Any) -> ModelParts:
    """The parts of a model. ValueError as `find_decoder`."""
    now = every_module(model)
    known = _known.get(model)
    found = None if known is None else known.among(now)
    if found is None:
        _known.pop(model, None)
        decoder = find_decoder(model)
        found = ModelParts(decoder, attention_layers(decoder), every_module(decoder))
        _known[model] = _Known(now, found)
    return found


def every_module(root: nn.Module) -> list[nn.Module]:
    """The modules that `root.modules()` finds, shared ones each time they are met, in a tenth of the time."""
    found = [root]
    for module in found:  # grows as it goes
        if module._modules:
            found += [child for child in module._modules.values() if child is not None]
    return found


class _Known:
    """Places in the list of all modules: references would keep a model alive that is its own decoder."""

    def __init__(self, modules: list[nn.Module], parts: ModelParts) -> None:
        self.ids, self.classes = list(map(id, modules)), list(map(type, modules))
        where = {id(module): i for i, module in enumerate(modules)}
        self.decoder = where[id(parts.decoder)]
        self.attention, self.everything = ([where[id(module)] for module in part] for part in parts[1:])
        # another module may be allocated where one that has gone was in memory
        self.alive = list(map(ref, modules))

    def among(self, modules: list[nn.Module]) -> ModelParts | None:
        """The parts, if every module is where it was, and what it was."""
        if self.ids != list(map(id, modules)) or self.classes != list(map(type, modules)):
            return None
        if any(known() is None for known in self.alive):
            return None
        at = modules.__getitem__
        return ModelParts(at(self.decoder), list(map(at, self.attention)), list(map(at, self.everything)))
