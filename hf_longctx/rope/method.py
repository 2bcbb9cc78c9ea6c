"""`RopeMethod`: the base of methods that are a table of rotary frequencies, and nothing else.

transformers can express them by itself, so a config carries them as plain `rope_parameters`, without our key: what
`save_pretrained` writes loads anywhere, with or without hf_longctx.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from ..anatomy import attention_layers, rotary_of
from ..method import LongContextMethod
from ..patch import Patch, applied
from ..upstream.versions import LONGROPE_PER_LAYER
from .parameters import (
    REPLACEABLE,
    full_entry,
    is_nested,
    moving_types,
    readable_length,
    refuse_moving_frequencies,
    with_entry,
)

logger = logging.getLogger("hf_longctx")
REACH = 4  # times the trained length: as far as scaled frequencies are worth it (README, methods)
# what stock rotary embeddings write into themselves as they run
WRITTEN = ("long_inv_freq", "max_seq_len_cached", "attention_scaling")

R = TypeVar("R", bound="RopeMethod")


class RopeMethod(LongContextMethod):
    """A method that replaces the rotary frequencies of full-attention layers. Subclasses implement `scaling`."""

    native: ClassVar[bool] = True

    replace: bool

    def scaling(self, config: Any, entry: dict[str, Any]) -> dict[str, Any]:
        """The changes to `entry`, the `rope_parameters` of the full-attention layers: a `rope_type` and its fields."""
        raise NotImplementedError

    def reach(self, config: Any) -> int | None:
        """`REACH` times what the config says the model reads."""
        readable = readable_length(config)
        return None if readable is None else int(REACH * readable)

    @classmethod
    def proposals(cls: type[R], tokens: int, trained: int | None) -> list[R]:
        """The defaults, beyond the trained length and up to `REACH` times that."""
        return [cls()] if cls.is_worth(tokens, trained) else []

    @staticmethod
    def is_worth(tokens: int, trained: int | None) -> bool:
        """Whether a text is longer than the trained length, and not more than `REACH` times as long."""
        return trained is not None and trained < tokens <= REACH * trained

    def configure(self, config: Any) -> Any:
        """A copy of `config`, a text model's, with native `rope_parameters` that say what this method does.

        ValueError where the method does not fit the model.
        """
        entry = full_entry(config)
        kind = entry.get("rope_type", "default")
        if kind != "default" and not (self.replace and kind in REPLACEABLE):
            remedy = "Pass replace=True to put this in its place" if kind in REPLACEABLE else "Choose another method"
            raise ValueError(
                f"{self!r}: the model's rope_parameters are scaled already (rope_type={kind!r}), and scalings do not "
                f"stack. {remedy}."
            )
        changes = self.scaling(config, entry)
        if changes["rope_type"] == "longrope" and is_nested(config) and not LONGROPE_PER_LAYER:
            raise ValueError(
                f"{self!r}: it is written as longrope, and this release of transformers cannot read past the "
                f"trained length with a longrope for each kind of layer. Upgrade to transformers 5.21, or choose "
                f"yarn, ntk or linear."
            )
        try:
            new = with_entry(config, changes)
        except Exception as error:  # each config's own constructor decides, and raises what it likes
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(
                f"{self!r}: {type(config).__name__} does not take rope_type={changes['rope_type']!r}: {reason}"
            ) from error
        moving = moving_types({"full": full_entry(new)})
        if moving:
            logger.warning(
                "%r: %s changes its frequencies with the length read, while keys in a cache stay rotated with those "
                "of their time; a generation that crosses the switch differs from a forward without a cache. yarn, "
                "ntk and linear are static.",
                self,
                moving[0],
            )
        return new

    def install(self, patch: Patch, decoder: nn.Module) -> None:
        """Replace the tables of the model's rotary embedding, and `rope_parameters` in its config."""
        twice = [p.method for p in applied(decoder) if isinstance(p.method, RopeMethod)]
        if twice:
            raise ValueError(
                f"{self!r}: the model's rotary frequencies are already those of {twice[0]!r}. Undo it first "
                f"(hf_longctx.undo(model)), or start from the model without it."
            )
        rotary: Any = rotary_of(decoder)
        if not any(child is rotary for child in decoder.children()):
            raise ValueError(
                f"{type(decoder).__name__}: its rotary embedding is inside its attention modules, and only one that "
                f"all layers share can be scaled."
            )
        others = [m for m in decoder.modules() if "RotaryEmbedding" in type(m).__name__ and m is not rotary]
        if others or any(hasattr(m, "kv_lora_rank") for m in attention_layers(decoder)):
            raise ValueError(
                f"{type(decoder).__name__}: only models with one rotary embedding and plain keys can be scaled in "
                f"memory (this one has {1 + len(others)}, or multi-head latent attention). Use "
                f"hf_longctx.extend_config."
            )
        new = self.configure(decoder.config)
        for below in applied(decoder):
            if below.method.decides_positions:
                refuse_moving_frequencies(below.method, new.rope_parameters)
        # what is made in inference mode could not be written to outside of it
        with torch.device("cpu"), torch.inference_mode(False):
            fresh = type(rotary)(new)
        for name, buffer in fresh.named_buffers(recurse=False):
            was = rotary._buffers.get(name)
            if was is None or was.shape != buffer.shape:
                there = {key: tuple(value.shape) for key, value in rotary.named_buffers(recurse=False)}
                raise ValueError(
                    f"{type(rotary).__name__}: {name} of shape {tuple(buffer.shape)} does not fit this model, which "
                    f"has {there}. hf_longctx cannot scale its frequencies."
                )
        for config in {id(c): c for c in (decoder.config, rotary.config)}.values():
            patch.set(config, "rope_parameters", new.rope_parameters)
        state = {key: value for key, value in vars(fresh).items() if key not in vars(nn.Module()) and key != "config"}
        prefixes = ("", *(f"{key}_" for key, value in new.rope_parameters.items() if isinstance(value, dict)))
        for name in (prefix + suffix for prefix in prefixes for suffix in WRITTEN):
            if name not in state:
                patch.remove(rotary, name)
        for name, value in state.items():
            patch.set(rotary, name, value)
        for name, buffer in fresh.named_buffers(recurse=False):
            patch.set_buffer(rotary, name, buffer.to(rotary._buffers[name].device))
