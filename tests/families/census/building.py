"""A tiny random model of any model type, without knowing the type: its config says which settings it has."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.families.census.settings import BASE, DROPPED, LATENT, OF_FAMILY, WINDOW

FULL = "full_attention"
LARGEST = 10**8  # parameters: one that is larger has sizes under names that we do not know


def build(model_type: str, **extra: Any) -> Any:
    """The model, in fp32. Norms are unequal: a norm of equal weights commutes with a rotation."""
    return random_model(AutoModelForCausalLM, config_of(model_type, **extra))


def random_model(auto: Any, config: Any) -> Any:
    """A model of an auto class as `build` makes it; ValueError for one that is not tiny."""
    with torch.device("meta"):
        size = sum(p.numel() for p in auto.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f}M parameters: its config has sizes that tests/families/census lacks")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = auto.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += torch.linspace(0, 0.5, len(parameter), dtype=parameter.dtype)
    return model.eval().float()


def config_of(model_type: str, **extra: Any) -> Any:
    """The config of a tiny model; `extra` are settings beyond those of its family."""
    cls = CONFIG_MAPPING[model_type]
    own = {**OF_FAMILY.get(model_type, {}), **extra}
    settings = {name: value for name, value in {**_common(cls), **own}.items() if value is not DROPPED}
    while True:
        try:
            return cls(**settings)
        except Exception as error:
            derived = [n for n in settings if n not in own and f"'{n}'" in str(error) and "no setter" in str(error)]
            if not derived:
                raise
            del settings[derived[0]]


def _common(cls: Any) -> dict[str, Any]:
    """What a config of this class gets of BASE, with layers of each kind that it has."""
    default = cls()
    names = set(inspect.signature(cls.__init__).parameters) | set(cls.attribute_map)
    names |= {name for name in BASE if _has(default, name) and not _is_property(cls, name)}
    settings = {name: value for name, value in BASE.items() if name in names}
    kinds, kinds_fixed = _kinds(default, "layer_types"), _is_property(cls, "layer_types")
    if kinds and not kinds_fixed:
        others = [kind for kind in kinds if kind != FULL] or kinds
        last = FULL if FULL in kinds else kinds[-1]
        settings["layer_types"] = [others[0], last, others[2 % len(others)], last]
    if "sliding_window" in names and not kinds_fixed:
        settings["sliding_window"] = WINDOW if any("sliding" in kind for kind in kinds) else None
    mlps = _kinds(default, "mlp_layer_types")
    if mlps and not _is_property(cls, "mlp_layer_types"):
        settings["mlp_layer_types"] = [mlps[0]] + [mlps[-1]] * 3
    if _has(default, "kv_lora_rank"):
        settings |= LATENT
    return settings


def _kinds(config: Any, name: str) -> list[str]:
    """The kinds of layers that a config lists under a name, each once."""
    return list(dict.fromkeys(getattr(config, name, None) or ()))


def _has(config: Any, name: str) -> bool:
    try:
        return hasattr(config, name)
    except Exception:  # an attribute that differs from layer to layer
        return True


def _is_property(cls: Any, name: str) -> bool:
    return isinstance(getattr(cls, name, None), property)
