"""`Patch`: every change to a model, with its inverse kept as data.

Inverses are objects and old values, not closures, so `copy.deepcopy(model)` copies them too: the copy's undo
acts on the copy. They run last-in first-out, and a change that fails half-way is rolled back.
"""

from __future__ import annotations

import copy
import os
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig

STACK = "_hf_longctx_patches"  # where an anchor module keeps its patches, in its __dict__


class _Missing:
    """There was no such attribute. A class, because it stays itself under deepcopy and pickle."""


# -- one kind of change each -------------------------------------------------------------------------------------
@dataclass
class _Attribute:
    """`vars(target)[name]` was `old`."""

    target: Any
    name: str
    old: Any

    def revert(self) -> None:
        if self.old is _Missing:
            vars(self.target).pop(self.name, None)
        else:
            vars(self.target)[self.name] = self.old


@dataclass
class _Class:
    """The class of `module` was `stock`."""

    module: nn.Module
    stock: type

    def revert(self) -> None:
        swapped = type(self.module)
        self.module.__class__ = self.stock
        _rebind_forward(self.module, swapped)


@dataclass
class _Buffer:
    """The buffer `name` of `module` was `old`."""

    module: nn.Module
    name: str
    old: Any

    def revert(self) -> None:
        new: Any = self.module._buffers[self.name]
        with torch.inference_mode(False):
            self.module._buffers[self.name] = self.old.to(new.device)  # the model may have moved meanwhile


@dataclass
class _Hook:
    """A forward hook was added."""

    handle: RemovableHandle

    def revert(self) -> None:
        self.handle.remove()


@dataclass
class _Config:
    """A model used `copy`, with the values `before` at the start, in place of `config`.

    What the user has changed in it since is carried over to `config`, e.g. vocab_size by resize_token_embeddings.
    """

    config: PreTrainedConfig
    copy: PreTrainedConfig
    before: dict[str, Any]

    def revert(self) -> None:
        for name, value in vars(self.copy).items():
            if not isinstance(value, PreTrainedConfig) and (name not in self.before or self.before[name] != value):
                vars(self.config)[name] = value


Change = _Attribute | _Class | _Buffer | _Hook | _Config


@dataclass
class Patch:
    """What one method changed in one model. `undo()` restores it, bit for bit."""

    method: Any
    model: nn.Module = field(repr=False)
    changes: list[Change] = field(default_factory=list, repr=False)
    active: bool = False
    adapter: str | None = None  # the PEFT adapter that brought the method; None where the user or the config did

    # -- making changes ----------------------------------------------------------------------------------------------
    def set(self, target: Any, name: str, value: Any) -> None:
        """`vars(target)[name] = value`, reversibly. Works on modules and configs alike, past their `__setattr__`."""
        self.changes.append(_Attribute(target, name, vars(target).get(name, _Missing)))
        vars(target)[name] = value

    def remove(self, target: Any, name: str) -> None:
        """Take `vars(target)[name]` away, if it is there, reversibly. The undo takes what is put there meanwhile."""
        self.changes.append(_Attribute(target, name, vars(target).pop(name, _Missing)))

    def set_buffer(self, module: nn.Module, name: str, tensor: Tensor) -> None:
        """Replace a buffer that `module` has by `tensor`, reversibly. The old one follows the module's device."""
        if tensor.is_inference():  # it could not be written to outside of inference mode
            with torch.inference_mode(False):
                tensor = tensor.clone()
        self.changes.append(_Buffer(module, name, module._buffers[name]))
        module._buffers[name] = tensor

    def set_class(self, module: nn.Module, cls: type) -> None:
        """Turn `module` into `cls`, reversibly, and let accelerate's hooks on it call the new forward."""
        stock = type(module)
        if has_forward_of_its_own(module):
            raise ValueError(
                f"{stock.__name__}: the forward of this module was replaced on the object itself, so {self.method!r} "
                f"would have no effect on it. Take that change back first (del module.forward), or make it in the "
                f"module's class."
            )
        self.changes.append(_Class(module, stock))
        module.__class__ = cls
        _rebind_forward(module, stock)

    def add_hook(self, module: nn.Module, hook: Callable[..., Any], when: str) -> None:
        """Register a forward hook ("pre", with keywords, or "post"), reversibly.

        A plain function: copies share it. A "post" hook also runs after an exception.
        """
        if when == "pre":
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        else:
            handle = module.register_forward_hook(hook, always_call=True)
        self.changes.append(_Hook(handle))

    def own_configs(self, root: nn.Module) -> None:
        """Give the modules of `root` configs of their own: one config object often serves several models.

        What the user changes in them meanwhile is carried over to the model's own config by the undo.
        """
        copies: dict[int, Any] = {}
        for module in root.modules():
            config = vars(module).get("config")
            if isinstance(config, PreTrainedConfig):
                copy.deepcopy(config, copies)
        for module in root.modules():
            config = vars(module).get("config")
            if isinstance(config, PreTrainedConfig):
                own = copies[id(config)]
                if not any(isinstance(c, _Config) and c.config is config for c in self.changes):
                    self.changes.append(_Config(config, own, copy.deepcopy(vars(own))))
                self.set(module, "config", own)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Roll every change back if the block raises; otherwise put the patch on its model's stack."""
        try:
            yield
        except BaseException:
            self._revert()
            raise
        vars(self.model).setdefault(STACK, []).append(self)
        self.active = True

    # -- undoing them ----------------------------------------------------------------------------------------------
    @contextmanager
    def inside(self) -> Iterator[None]:
        """`with patch.inside():` undoes it on exit unless already undone."""
        try:
            yield
        finally:
            if self.active:
                self.undo()

    def undo(self) -> None:
        """Undo this patch. Only the newest one of a model can be undone; undoing twice is an error."""
        stack = vars(self.model).get(STACK, [])
        if not self.active or not any(patch is self for patch in stack):
            raise RuntimeError(f"{self.method!r} is not applied to this {type(self.model).__name__}: nothing to undo.")
        if stack[-1] is not self:
            newer = ", ".join(repr(p.method) for p in reversed(stack) if p is not self)
            raise RuntimeError(
                f"{self.method!r} is below {newer} on the patch stack: patches are undone last in, first out. Undo the "
                f"newer one first."
            )
        self._revert()
        stack.pop()
        if not stack:
            del vars(self.model)[STACK]
        self.active = False

    def _revert(self) -> None:
        while self.changes:
            self.changes.pop().revert()

    def describe(self) -> str:
        """What was touched, counted, for the log."""
        classes = [c.stock.__name__ for c in self.changes if isinstance(c, _Class)]
        kinds = sorted(set(classes))
        return f"{len(classes)} x {', '.join(kinds)}" if classes else f"{len(self.changes)} attributes"


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT or torch.compile wrapper, or the model itself.

    ValueError for other objects: a path, a config, a tokenizer, a pipeline.
    """
    if not isinstance(model, nn.Module):
        given = repr(model) if model is None or isinstance(model, (str, os.PathLike, type)) else type(model).__name__
        holds = isinstance(getattr(model, "model", None), nn.Module)  # a pipeline, a Trainer
        remedy = "Give it the .model inside" if holds else "Load one with AutoModelForCausalLM.from_pretrained(...)"
        raise ValueError(f"{given}: expected a model in memory. {remedy}.")
    model = getattr(model, "_orig_mod", model)  # torch.compile
    base = getattr(model, "get_base_model", None)  # PeftModel
    return base() if callable(base) else model


def applied(model: nn.Module) -> list[Patch]:
    """The patches on a model, oldest first."""
    stacks = [vars(module)[STACK] for module in unwrap(model).modules() if STACK in vars(module)]
    return list(stacks[0]) if stacks else []


def undo(model: nn.Module) -> None:
    """Undo every patch on a model, newest first. A model without patches is left alone."""
    for patch in reversed(applied(model)):
        patch.undo()


def has_forward_of_its_own(module: nn.Module) -> bool:
    """Does the object call another forward than its class's? Those that accelerate keeps in it do not count."""
    own = vars(module)
    kept = own.get("_old_forward", own.get("forward"))
    return kept is not None and getattr(kept, "__func__", None) is not type(module).forward


def _rebind_forward(module: nn.Module, was: type) -> None:
    # accelerate keeps bound forwards in the instance; left alone they would call the class the module no longer has
    for name in ("forward", "_old_forward"):
        bound = vars(module).get(name)
        if isinstance(bound, types.MethodType) and bound.__func__ is was.forward:  # type: ignore[attr-defined]
            vars(module)[name] = types.MethodType(type(module).forward, module)
