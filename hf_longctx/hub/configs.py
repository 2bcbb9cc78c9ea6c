"""Configs that carry methods."""

from __future__ import annotations

import copy
import os

from transformers import AutoConfig, PreTrainedConfig

from ..method import LongContextMethod, read_key, write_key
from ..rope.parameters import refuse_moving_frequencies
from ..settings import KEY
from .shim import drop_ours


def extend_config(config: PreTrainedConfig | str | os.PathLike[str], *methods: LongContextMethod) -> PreTrainedConfig:
    """A config that carries methods, for `from_pretrained(path, config=...)` or to be saved.

    Args:
        config: A config, which is copied, or a path or Hub id to read it from.
        methods: Applied in this order. Methods that transformers can express by itself (RoPE scaling) become native
            settings, and need no hf_longctx to be loaded. The others take the place of those that the config has; none
            at all takes the key out again.
    """
    if not isinstance(config, (PreTrainedConfig, str, os.PathLike)):
        raise ValueError(f"{type(config).__name__}: expected a config, or the path or Hub id of one (model.config).")
    if not isinstance(config, PreTrainedConfig):
        config = _read(config)
    config = copy.deepcopy(config)
    for method in methods:
        if not isinstance(method, LongContextMethod):
            raise ValueError(f"{method!r}: expected a method, for example hf_longctx.LMInfinite(n_local=4096).")
    text = config.get_text_config(decoder=True)
    scalings = [method for method in methods if method.native]
    if len(scalings) > 1:
        raise ValueError(
            f"{scalings[0]!r} and {scalings[1]!r} both scale rotary frequencies, and do not stack. Keep one."
        )
    for method in scalings:
        text.rope_parameters = method.configure(text).rope_parameters
    keyed = [method for method in methods if not method.native]
    entry = getattr(text, KEY, None) or getattr(config, KEY, None)
    if scalings and not keyed and entry:
        keyed = read_key(entry)
    for method in keyed:
        if method.decides_positions:
            refuse_moving_frequencies(method, getattr(text, "rope_parameters", None))
    setattr(config, KEY, None)  # of a composite config, which may have been given an entry of its own
    setattr(text, KEY, write_key(keyed) if keyed else None)
    if not keyed:
        drop_ours(config)
    return config


def _read(place: str | os.PathLike[str]) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(place)
    except OSError as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise OSError(
            f"{str(place)!r}: no config could be read from it ({why}). Give a folder with a config.json, a Hub id, or "
            f"a config (model.config)."
        ) from error
