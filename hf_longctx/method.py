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
from .registry import Recorded, get
from .registry import from_spec as any_from_spec
from .settings import KEY
from .upstream.installing import UPGRADE

if TYPE_CHECKING:
    from torch import nn

SCHEMA_VERSION = 1

logger = logging.getLogger("hf_longctx")
M = TypeVar("M", bound="LongContextMethod")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Footprint:
    """What one attention layer keeps and reads under a method.

    Args:
        kept: Tokens whose keys the cache keeps at most. None: all.
        span: Keys that a query attends to at most, its own included. None: all before it.
        looked_up: Keys that a query looks up among all others, for which every pair is scored.
        on_host: The keys are in host memory, and visit the device while the layer runs.
        twice: Of all keys kept, those that are kept once more, to be attended to. None: attention gets all of them.
        coded: Every key is kept as a binary code too, by which it is looked up.
        shortlist: Of keys that are looked up by codes, those that are read themselves.
    """

    kept: int | None = None
    span: int | None = None
    looked_up: int = 0
    on_host: bool = False
    twice: int | None = None
    coded: bool = False
    shortlist: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongContextMethod(Recorded):
    """Base of every method. A subclass says what `Recorded` asks for, and implements `install`."""

    kind: ClassVar[str] = "method"
    native: ClassVar[bool] = False  # transformers expresses it by itself: it stays out of the key
    decides_positions: ClassVar[bool] = False  # a model has room for one such method
    endless: ClassVar[bool] = False  # reads on beyond any trained length
    extends: ClassVar[bool] = True  # reads further than the model does
    training_free: ClassVar[bool] = True  # of use without fine-tuning

    # -- what a method does to a model -----------------------------------------------------------------------------
    def resolve(self: M, config: Any) -> M:
        """The method with every None that depends on the model filled in from `config`. The default changes nothing."""
        return self

    def install(self, patch: Patch, decoder: nn.Module) -> None:
        """Change `decoder`, the method's anchor, through `patch` only. What cannot work raises before any change."""
        raise NotImplementedError(f"{type(self).__name__} is abstract: subclass it and implement install().")

    def anchor(self, model: nn.Module) -> nn.Module:
        """The part of `model` that `install` changes, and that keeps the patches. The default is `find_decoder`."""
        return find_decoder(model)

    def surround(self, patch: Patch, outer: nn.Module) -> None:
        """Change `outer`, a model around the decoder, through `patch`; of a vision-language model there are several."""

    def apply(self, model: nn.Module) -> Patch:
        """Change a model in memory, and return the `Patch` that undoes the change.

        The model's config carries the method from now on, so `save_pretrained` and `push_to_hub` keep it. Give it the
        whole model, the one that is saved and generates: the model around a part, such as `model.model`, would neither
        save the method nor use its cache. One forward at a time: a model with a method is not for several threads at
        once. PEFT models are unwrapped, and adapters saved from then on carry the method. Quantised, dispatched and
        offloaded models are changed as they are. If anything raises, the model is as it was before.
        """
        root = unwrap(model)
        return self._apply(self.anchor(root), root, own_configs=True)

    def _apply(self, anchor: nn.Module, root: nn.Module, own_configs: bool) -> Patch:
        patch = Patch(method=self, model=anchor)
        with patch.recording():
            earlier = applied(root)
            if earlier and earlier[-1].model is not anchor:
                raise ValueError(
                    f"{self!r} changes {type(anchor).__name__}, and {earlier[-1].method!r} has changed "
                    f"{type(earlier[-1].model).__name__}: methods on one model must change the same part of it."
                )
            if own_configs:
                patch.own_configs(root)
            self.install(patch, anchor)
            for outer in root.modules():
                if outer is not anchor and any(module is anchor for module in outer.modules()):
                    self.surround(patch, outer)
            if not self.native:
                patch.set(anchor.config, KEY, write_key([*(p.method for p in earlier), self]))
        logger.info("applied %r to %s: %s", self, type(anchor).__name__, patch.describe())
        return patch

    def configure(self, config: Any) -> Any:
        """A copy of `config` that says by itself what a `native` method does."""
        raise NotImplementedError

    def store_(self, model: nn.Module) -> None:
        """Apply it: the config of a model says what is applied to it."""
        self.apply(model)

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[nn.Module]:
        """`with method.on(model):` applies the method inside the block; undone on exit unless already undone."""
        with self.apply(model).inside():
            yield model

    @contextmanager
    def running(self, model: nn.Module) -> Iterator[dict[str, Any]]:
        """`on`, with no argument for `generate`."""
        with self.on(model):
            yield {}

    # -- what a method says of itself: `plan` asks -----------------------------------------------------------------
    def footprint(self, module: nn.Module) -> Footprint | None:
        """What a full-attention layer keeps and reads; None: what it does in the stock model. Asked once resolved."""
        return None

    def sees(self) -> str:
        """What a token of a text longer than the layers' spans can use of it, in words."""
        return "the whole text"

    def reach(self, config: Any) -> int | None:
        """The tokens up to which it makes sense on the model of a stock text config. None: any number."""
        return None if self.endless else getattr(config, "max_position_embeddings", None)

    def smaller(self: M) -> Iterator[tuple[str, M]]:
        """The same method with less and less to keep on the device, each with the text of its `--set`."""
        yield from ()

    @classmethod
    def proposals(cls: type[M], tokens: int, trained: int | None) -> list[M]:
        """Settings worth trying for `tokens` on a model trained to `trained`; the one that sees most comes first."""
        return [cls()] if cls.extends else []


def from_spec(spec: dict[str, Any]) -> LongContextMethod:
    """Build a method from its `config.json` entry, e.g. `{"name": "lm_infinite", "n_local": 4096}`."""
    found = any_from_spec(spec)
    if isinstance(found, LongContextMethod):
        return found
    raise ValueError(
        f"name={found.name!r}: {type(found).__name__} is a way to generate, not a change of the model: "
        f"`hf-longctx generate --method {found.name}`."
    )


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
    if strange := sorted(map(str, set(value) - {"version", "methods"})):
        raise ValueError(f"{shape} It has the unknown field {strange[0]!r}.")
    if not isinstance(value.get("methods"), list):
        raise ValueError(shape)
    for spec in value["methods"]:
        name = spec.get("name") if isinstance(spec, dict) else None
        if isinstance(name, str):
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
            f"{KEY}: {deciding[0]!r} and {deciding[1]!r} both control key positions, and only one such method can be "
            f"active. Keep one of them."
        )
    return found


def write_key(methods_: Iterable[LongContextMethod]) -> dict[str, Any]:
    """The `hf_longctx` entry of a config that carries these methods, in the order in which they are applied.

    Native ones are left out: the rest of the config says what they do.
    """
    return {"version": SCHEMA_VERSION, "methods": [method.spec() for method in methods_ if not method.native]}
