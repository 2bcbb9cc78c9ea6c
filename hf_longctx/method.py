"""What a long-context method is: a value that can be applied to a model, written to its config and taken back.

A method is a frozen, keyword-only dataclass. Its fields are its entry in `config.json`, its constructor is its
documentation, its `repr` is its log line. Subclassing registers it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from .anatomy import find_decoder
from .patch import Patch, applied, unwrap
from .registry import unknown
from .settings import KEY, Settings, read_settings
from .upstream.installing import UPGRADE

if TYPE_CHECKING:
    from torch import nn

SCHEMA_VERSION = 1

logger = logging.getLogger("hf_longctx")
_REGISTRY: dict[str, type[LongContextMethod]] = {}
M = TypeVar("M", bound="LongContextMethod")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongContextMethod(Settings):
    """Base of every method. A subclass sets `name`, `summary` and `paper`, and implements `install`.

    Its docstring has a paragraph for each of `settings.GUIDANCE`, in a sentence or two, which `hf-longctx methods`
    shows.
    """

    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    native: ClassVar[bool] = False  # transformers expresses it by itself: it stays out of the key
    decides_positions: ClassVar[bool] = False  # a model has room for one such method
    endless: ClassVar[bool] = False  # reads on beyond any trained length

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__dict__.get("name"):
            return  # an abstract layer between this class and the methods
        if cls.name in _REGISTRY:
            taken = _REGISTRY[cls.name]
            raise ValueError(
                f"name={cls.name!r}: {cls.__module__}.{cls.__qualname__} cannot take the name of "
                f"{taken.__module__}.{taken.__qualname__}. Give the new method a name of its own."
            )
        _REGISTRY[cls.name] = cls

    # -- what a method does to a model -----------------------------------------------------------------------------
    def resolve(self: M, config: Any) -> M:
        """The method with every None that depends on the model filled in from `config`. The default changes nothing."""
        return self

    def install(self, patch: Patch, decoder: nn.Module) -> None:
        """Change `decoder`, the module with the decoder layers and the rotary embedding, through `patch` only.

        Whatever cannot work raises before the first change.
        """
        raise NotImplementedError(f"{type(self).__name__} changes nothing: a method is a subclass with an `install`.")

    def surround(self, patch: Patch, outer: nn.Module) -> None:
        """Change `outer`, a model around the decoder, through `patch`; of a vision-language model there are several."""

    def apply(self, model: nn.Module) -> Patch:
        """Change a model in memory, and return the `Patch` that takes the change back.

        The model's config carries the method from now on, so `save_pretrained` and `push_to_hub` keep it. Give it the
        whole model, the one that is saved and generates: what is around a part of it, such as `model.model`, would
        know nothing of the method. One forward at a time: a model with a method is not for several threads at once.
        PEFT models are unwrapped, and adapters saved from then on carry the method. Quantised, dispatched and offloaded
        models are changed as they are. If anything raises, the model is as it was before.
        """
        root = unwrap(model)
        return self._apply(find_decoder(root), root, own_configs=True)

    def _apply(self, decoder: nn.Module, root: nn.Module, own_configs: bool) -> Patch:
        patch = Patch(method=self, model=decoder)
        with patch.recording():
            earlier = [p.method for p in applied(decoder)]
            if own_configs:
                patch.own_configs(root)
            self.install(patch, decoder)
            for outer in root.modules():
                if outer is not decoder and any(module is decoder for module in outer.modules()):
                    self.surround(patch, outer)
            if not self.native:
                patch.set(decoder.config, KEY, write_key([*earlier, self]))
        logger.info("applied %r to %s: %s", self, type(decoder).__name__, patch.describe())
        return patch

    def configure(self, config: Any) -> Any:
        """A copy of `config` that says by itself what a `native` method does."""
        raise NotImplementedError

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[nn.Module]:
        """`with method.on(model):` applies the method for the length of the block, or until its undo in there."""
        patch = self.apply(model)
        try:
            yield model
        finally:
            if patch.active:
                patch.undo()


def list_methods() -> dict[str, type[LongContextMethod]]:
    """Every registered method by name, sorted."""
    from . import load_methods

    load_methods()
    return dict(sorted(_REGISTRY.items()))


def get(name: str) -> type[LongContextMethod]:
    """The method class called `name`. ValueError with the nearest name if there is none."""
    known = list_methods()
    if name in known:
        return known[name]
    raise ValueError(unknown(name, known))


def from_spec(spec: dict[str, Any]) -> LongContextMethod:
    """Build a method from its `config.json` entry, e.g. `{"name": "lm_infinite", "n_local": 4096}`."""
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise ValueError(f'{spec!r}: a method is given as {{"name": "...", field: value, ...}}.')
    fields = {k: v for k, v in spec.items() if k != "name"}
    return get(spec["name"]).from_fields(fields)


def parse(name: str, settings: Iterable[str] = ()) -> LongContextMethod:
    """Build a method from command-line settings: `parse("lm_infinite", ["n_local=4096", "top_k=5"])`.

    Values are read as `settings.read_settings` says.
    """
    return from_spec({"name": name, **read_settings(settings)})


def read_key(value: Any) -> list[LongContextMethod]:
    """The methods in a config's `hf_longctx` entry. ValueError says what is wrong and which release to install."""
    shape = (
        f'{KEY}={value!r}: expected {{"version": {SCHEMA_VERSION}, "methods": [{{"name": ...}}, ...]}}. '
        f"Write it with hf_longctx.extend_config, or delete the entry."
    )
    if not isinstance(value, dict) or "version" not in value:
        raise ValueError(shape)
    version = value["version"]
    if type(version) is not int or version < 1:
        raise ValueError(f"{KEY}.version={version!r}: expected a whole number, at most {SCHEMA_VERSION}.")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{KEY}.version={version}: this release reads up to version {SCHEMA_VERSION}. The model was saved by a "
            f"newer hf_longctx. To upgrade: {UPGRADE}."
        )
    if set(value) != {"version", "methods"} or not isinstance(value["methods"], list):
        raise ValueError(shape)
    for spec in value["methods"]:
        name = spec.get("name") if isinstance(spec, dict) else None
        if isinstance(name, str) and name not in list_methods():
            try:
                get(name)
            except ValueError as error:
                raise ValueError(
                    f"{KEY}: {error} If the name is right, the model was saved by a newer hf_longctx. To "
                    f"upgrade: {UPGRADE}."
                ) from None
    try:
        found = [from_spec(spec) for spec in value["methods"]]
    except ValueError as error:
        raise ValueError(f"{KEY}: {error} Correct the entry, or write it with hf_longctx.extend_config.") from None
    for method in found:
        if method.native:
            raise ValueError(
                f"{KEY}: {method.name} is part of a config's rope_parameters and has no place in this entry. Write it "
                f"with hf_longctx.extend_config, or apply it to the model and save that."
            )
    deciding = [method for method in found if method.decides_positions]
    if len(deciding) > 1:
        raise ValueError(
            f"{KEY}: {deciding[0]!r} and {deciding[1]!r} both decide at which positions keys are read, and a model has "
            f"room for one such method. Keep one of them."
        )
    return found


def write_key(methods_: Iterable[LongContextMethod]) -> dict[str, Any]:
    """The `hf_longctx` entry of a config that carries these methods, in the order in which they are applied.

    Native ones are left out: the rest of the config says what they do.
    """
    return {"version": SCHEMA_VERSION, "methods": [method.spec() for method in methods_ if not method.native]}
