"""The rotary frequencies of a GGUF file as a transformers config; transformers itself reads few of the keys.

llama.cpp keeps the base and the number of rotated dims (`rope.freq_base`, `rope.dimension_count`), a scaling
(`rope.scaling.*`: linear, yarn, longrope), and tensors of divisors for each frequency: `rope_freqs` (Llama 3.1 and
later), `rope_factors_short` and `rope_factors_long` (Phi 3). All of it goes into `rope_parameters`, or is refused by
name. The keys are read as llama.cpp reads them (src/llama-model.cpp, src/llama-context.cpp).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..anatomy import FULL
from ..rope.parameters import SCALING, frequencies, full_entry, is_nested, rotary_dim, with_entry
from ..upstream.versions import LONGROPE_PER_LAYER

TENSORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
# of `<architecture>.rope.scaling.`; `finetuned` says nothing about frequencies
KNOWN = {"type", "factor", "original_context_length", "attn_factor", "finetuned"}
YARN = {f"yarn_{name}" for name in ("ext_factor", "attn_factor", "beta_fast", "beta_slow", "log_multiplier")}
ORIGINAL = "Load the original checkpoint, not its GGUF file."
CLOSE = 1e-5  # relative; the tensors are float32
STOPPED = 1e-12  # a frequency that makes no turn in any text: llama.cpp divides by 1e30, transformers has 0


@dataclass(frozen=True)
class FileRope:
    """`fields` are metadata by their names without the architecture, `tensors` the factors by their names."""

    architecture: str
    fields: dict[str, Any]
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    def scaling(self, name: str, default: Any = None) -> Any:
        """A setting below `rope.scaling`."""
        return self.fields.get(f"rope.scaling.{name}", default)

    def summary(self) -> str:
        """Its scaling, in a few words."""
        keys = [key for key in self.fields if key.startswith("rope.scaling.")]
        return ", ".join([f"{key}={self.fields[key]!r}" for key in keys] + list(self.tensors)) or "no RoPE scaling"

    def refuse(self, what: str, why: str) -> ValueError:
        """The error about a key or tensor that cannot be expressed."""
        name = what if what in self.tensors else f"{self.architecture}.{what}"
        return ValueError(f"{name}: {why} {ORIGINAL}")


def with_file_rope(config: Any, file: FileRope) -> Any:
    """`config`, or a copy whose full-attention layers have the file's frequencies; ValueError if that is impossible."""
    _check(file)
    text = config.get_text_config()
    if not getattr(text, "rope_parameters", None):
        if file.tensors or file.scaling("type", "none") != "none" or file.scaling("factor", 1.0) != 1.0:
            raise file.refuse("rope.scaling", f"{type(text).__name__} has no rope_parameters to put this into.")
        return config
    entry = _unscaled(text, file)
    base = _base(text, file, entry)
    divided = _divided_by(file, len(base))
    plain = entry.get("rope_type", "default") == "default"
    if divided is None:
        changes = _longrope(text, file) if _is_longrope(file) else _yarn(text, file)
    elif file.scaling("attn_factor", 1.0) == 1.0 and (
        bool((divided == 1).all()) if plain else _same(_table(text), base / divided)
    ):
        return _bases(text, file, entry)  # nothing scaled, or a family whose scaling its class knows (Gemma 4)
    else:
        changes = _static(text, file, base, divided)
    own = {key: value for key, value in entry.items() if key not in SCALING}
    new = _bases(text, file, {**own, **changes})
    table = _table(new)
    if table.shape != base.shape or (divided is not None and not _same(table, base / divided)):
        raise file.refuse("rope.scaling", f"{type(text).__name__} does not take these frequencies.")
    return new


def _check(file: FileRope) -> None:
    for key, value in file.fields.items():
        name = key.removeprefix("rope.scaling.")
        if name != key and name not in KNOWN | YARN and value:
            raise file.refuse(key, f"{value!r} is not known to hf_longctx, and transformers would ignore it.")
    kind = file.scaling("type", "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise file.refuse("rope.scaling.type", f"{kind!r} is not known. Expected none, linear, yarn or longrope.")
    for name in ("factor", "attn_factor", "original_context_length"):
        if (value := file.scaling(name)) is not None and not 0 <= value < math.inf:
            raise file.refuse(f"rope.scaling.{name}", f"{value!r} is no number above 0.")
    for name, factors in file.tensors.items():
        if not (np.isfinite(factors) & (factors > 0)).all():
            raise file.refuse(name, "its factors are not all finite and above 0.")
    if (TENSORS[1] in file.tensors) != (TENSORS[2] in file.tensors):
        alone = TENSORS[1] if TENSORS[1] in file.tensors else TENSORS[2]
        raise file.refuse(alone, "longrope needs both short and long factors.")
    if kind == "longrope" and not _is_longrope(file):
        raise file.refuse("rope.scaling.type", "'longrope', and the file has no short and long factors.")
    if _is_longrope(file) and (len(file.tensors) > 2 or kind == "yarn" or _factor(file) != 1.0):
        raise file.refuse(TENSORS[1], "longrope's factors together with another scaling cannot be expressed.")


def _is_longrope(file: FileRope) -> bool:
    return TENSORS[1] in file.tensors


def _factor(file: FileRope) -> float:
    """llama.cpp takes a factor without a type for linear, and 0 for none; `scale_linear` is the key's old name."""
    if file.scaling("type") == "none":
        return 1.0
    return _plain(file.scaling("factor", file.fields.get("rope.scale_linear"))) or 1.0


def _unscaled(config: Any, file: FileRope) -> dict[str, Any]:
    """The entry of full-attention layers with the file's base and rotated dims; transformers reads some of them."""
    entry = full_entry(config)
    theta, rotated = file.fields.get("rope.freq_base"), file.fields.get("rope.dimension_count")
    if theta is not None:
        entry["rope_theta"] = _plain(theta)
    head_dim = file.fields.get("attention.key_length") or config.hidden_size // config.num_attention_heads
    # a config with another head width does not belong to this file: its weights will not fit either
    if rotated and entry.get("rope_type", "default") == "default" and head_dim == rotary_dim(config, {}):
        if rotated > head_dim:
            raise file.refuse("rope.dimension_count", f"{rotated} rotated dims of heads of {head_dim}.")
        if rotated != rotary_dim(config, entry):
            entry["partial_rotary_factor"] = rotated / head_dim
    return entry


def _base(config: Any, file: FileRope, entry: dict[str, Any]) -> np.ndarray:
    """The frequencies before any scaling, highest first."""
    if entry.get("rope_type", "default") == "default":
        return np.array(frequencies(config, entry))
    # a family with a scaling of its own may count rotated dims, and know head widths, in its own way
    dim = file.fields.get("rope.dimension_count") or rotary_dim(config, entry)
    table: np.ndarray = float(entry["rope_theta"]) ** (-np.arange(0, dim, 2) / dim)
    return table


def _bases(config: Any, file: FileRope, entry: dict[str, Any]) -> Any:
    """A copy of `config` with `entry` for its full-attention layers; sliding ones may have a base of their own."""
    config = copy.deepcopy(config)
    original = file.scaling("original_context_length")
    if original and hasattr(config, "original_max_position_embeddings"):
        config.original_max_position_embeddings = original  # Phi 3: comes before that of rope_parameters
    sliding = file.fields.get("rope.freq_base_swa")
    if sliding is not None and is_nested(config):
        for kind in config.rope_parameters.keys() - {FULL}:
            config.rope_parameters[kind]["rope_theta"] = _plain(sliding)
    elif sliding is not None and sliding != file.fields.get("rope.freq_base", sliding):
        raise file.refuse("rope.freq_base_swa", f"{type(config).__name__} has one base for all of its layers.")
    try:
        return with_entry(config, entry)
    except Exception as error:  # each config's own constructor decides, and raises what it likes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        kind = entry.get("rope_type")
        raise file.refuse("rope.scaling", f"{type(config).__name__} does not take {kind!r} ({reason}).") from error


def _divided_by(file: FileRope, n: int) -> np.ndarray | None:
    """The divisor of each of the n frequencies; None for yarn and longrope, which have their own fields."""
    yarn = file.scaling("type") == "yarn" and _factor(file) != 1.0
    if yarn and file.tensors:
        raise file.refuse(TENSORS[0], "factors of frequencies together with yarn cannot be expressed.")
    for name, factors in file.tensors.items():
        if len(factors) != n:
            raise file.refuse(name, f"{len(factors)} factors for {n} frequencies of each head.")
    if yarn or _is_longrope(file):
        return None
    factors = file.tensors.get(TENSORS[0], np.ones(n))
    return factors.astype(np.float64) * _factor(file)


def _static(config: Any, file: FileRope, base: np.ndarray, divided: np.ndarray) -> dict[str, Any]:
    """Frequencies that never change: as linear or llama3 if they have that form, else as longrope with one table."""
    attention = _plain(file.scaling("attn_factor", 1.0))
    if attention == 1.0:
        if np.allclose(divided, divided[0], rtol=CLOSE):
            factor = _plain(divided[0])
            return {"rope_type": "default"} if factor == 1.0 else {"rope_type": "linear", "factor": factor}
        if found := _llama3(config, file, base, divided):
            return found
    _check_per_layer(config, file, TENSORS[0])
    factors = np.minimum(divided, 1e18)  # 1e30 would overflow in float32
    return _longrope_entry(_original(config, file), factors, factors) | {"factor": 1.0, "attention_factor": attention}


def _llama3(config: Any, file: FileRope, base: np.ndarray, divided: np.ndarray) -> dict[str, Any] | None:
    """The fields of llama3 if its formula gives these divisors.

    With x turns per token, the share that a frequency keeps is (original * x - low) / (high - low), clipped to 0 and 1:
    a line. It leaves one of the three open, so low is 1, as in every published model, unless the file has `original`.
    """
    factor, turns, given = divided.max(), base / (2 * math.pi), file.scaling("original_context_length")
    share = (1 / divided - 1 / factor) / (1 - 1 / factor)

    def gives(original: float, low: float, high: float) -> bool:
        kept = np.clip((original * turns - low) / (high - low), 0, 1)
        return np.allclose(1 / (kept + (1 - kept) / factor), divided, rtol=CLOSE)

    fitted: list[tuple[float, float, float]] = []
    between = (share > 1e-3) & (share < 1 - 1e-3)
    if between.sum() >= 2:
        slope, start = np.polyfit(turns[between], share[between], 1)
        if slope > 0 > start:
            width = -1 / start  # high - low, in units of low
            original = given or round(slope * width)
            low = float(f"{original / (slope * width):.4g}")
            fitted.append((original, low, float(f"{low * (1 + width):.4g}")))
    lengths = [8192, config.max_position_embeddings, round(config.max_position_embeddings / factor)]
    usual = [(float(length), 1.0, 4.0) for length in (*lengths, *(2**n for n in range(5, 21)))]
    guesses = [(given, 1.0, 4.0), *fitted, *usual] if given else [*usual, *fitted]
    for original, low, high in guesses:
        if high > low > 0 and gives(original, low, high):
            return {
                "rope_type": "llama3",
                "factor": _plain(factor),
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": int(original),
            }
    return None


def _longrope(config: Any, file: FileRope) -> dict[str, Any]:
    _check_per_layer(config, file, TENSORS[1])
    original, trained = file.scaling("original_context_length"), config.max_position_embeddings
    if not original:
        raise file.refuse(TENSORS[1], "longrope without rope.scaling.original_context_length, where it switches.")
    usual = math.sqrt(1 + math.log(trained / original) / math.log(original)) if trained > original else 1.0
    attention = file.scaling("attn_factor", usual)
    # left out where it is LongRoPE's own, which transformers computes from the two lengths
    own = {} if math.isclose(attention, usual, rel_tol=CLOSE) else {"attention_factor": _plain(attention)}
    return _longrope_entry(original, file.tensors[TENSORS[1]], file.tensors[TENSORS[2]]) | own


def _longrope_entry(original: Any, short: np.ndarray, long: np.ndarray) -> dict[str, Any]:
    factors = {"short_factor": [_plain(one) for one in short], "long_factor": [_plain(one) for one in long]}
    return {"rope_type": "longrope", "original_max_position_embeddings": original, **factors}


def _yarn(config: Any, file: FileRope) -> dict[str, Any]:
    factor = _factor(file)
    usual = 0.1 * math.log(factor) + 1.0
    extrapolation, multiplier = file.scaling("yarn_ext_factor", 1.0), file.scaling("attn_factor", 1.0)
    if extrapolation >= 0 and extrapolation != 1.0:  # llama.cpp: below 0 is not set
        raise file.refuse("rope.scaling.yarn_ext_factor", f"{extrapolation:g} cannot be expressed; expected 1.")
    if not any(math.isclose(multiplier, known, rel_tol=CLOSE) for known in (1.0, usual)):
        raise file.refuse(
            "rope.scaling.attn_factor",
            f"{multiplier:g} is a multiplier of yarn's own factor in some files and that factor in others.",
        )
    found = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": _original(config, file),
        "attention_factor": _plain(file.scaling("yarn_attn_factor")),
        "beta_fast": _plain(file.scaling("yarn_beta_fast")),
        "beta_slow": _plain(file.scaling("yarn_beta_slow")),
    }
    if file.scaling("yarn_log_multiplier"):
        found |= {"mscale": 1.0, "mscale_all_dim": _plain(file.scaling("yarn_log_multiplier"))}
    own = full_entry(config)
    if own.get("rope_type") == "yarn" and "truncate" in own:  # of the family (gpt-oss); no file has it
        found["truncate"] = own["truncate"]
    return {key: value for key, value in found.items() if value is not None}


def _check_per_layer(config: Any, file: FileRope, name: str) -> None:
    if is_nested(config) and not LONGROPE_PER_LAYER:
        what = name if name in file.tensors else "rope.scaling"
        raise file.refuse(what, "it is written as longrope for each kind of layer, which needs transformers 5.21.")


def _table(config: Any) -> np.ndarray:
    """The frequencies of full-attention layers in the model that transformers makes of this config."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    rotary: Any = next(m for m in model.modules() if "RotaryEmbedding" in type(m).__name__)
    with torch.device("cpu"):
        buffers: dict[str, Any] = dict(type(rotary)(config).named_buffers())
    table: np.ndarray = buffers[f"{FULL}_inv_freq" if f"{FULL}_inv_freq" in buffers else "inv_freq"].double().numpy()
    return table


def _original(config: Any, file: FileRope) -> Any:
    return file.scaling("original_context_length") or config.max_position_embeddings


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=CLOSE, atol=STOPPED)


def _plain(value: Any) -> Any:
    """A float32 as the shortest decimal that gives it."""
    return None if value is None else float(str(np.float32(value)))
