"""The model as it is before training, which is measured, writes what is rehearsed, and teaches: loaded once for all."""

from __future__ import annotations

from typing import Any

from hf_longctx.hub import load


class Stock:
    """A config's model, in eval mode on its device, in the dtype that is saved; loaded when it is first asked for."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self._loaded: tuple[Any, Any] | None = None

    def loaded(self) -> tuple[Any, Any]:
        """The model and its tokenizer, which stay in memory."""
        if self._loaded is None:
            self._loaded = load(self.config["model"], dtype=self.config["save_dtype"])
        return self._loaded

    def taken(self) -> Any:
        """The model, which is in memory as long as its new owner has it."""
        model, _ = self.loaded()
        self.let_go()
        return model

    def let_go(self) -> None:
        """The model is wanted no more."""
        self._loaded = None
