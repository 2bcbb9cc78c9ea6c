"""RoPE scaling as transformers has it, merged into a model's own settings instead of replacing them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

from ..near import did_you_mean
from ..rope.method import RopeMethod
from ..rope.parameters import FIELDS, is_nested, readable_length, rotary_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling(RopeMethod):
    """RoPE scaling (Chen et al. 2023 and after): read `factor` times the trained length with lower rotary frequencies.

    Use when: a text is a few times the trained length and must all stay visible, untrained up to about 4 times: `ntk`
    at about twice the factor finds most, `yarn` reads more fluently and finds less. Further after fine-tuning, which
    `linear` needs.

    Cannot: continue indefinitely, or make reading cheaper; text within the trained length is read a little worse, under
    `linear` without fine-tuning much worse.

    Costs: nothing beyond the stock model, whose memory and time per token grow with the text.

    `dynamic`, and `longrope` with two tables, change their frequencies with the length read, while keys in a cache stay
    rotated with those of their time: a generation that crosses the switch differs from a forward without a cache. The
    others are static; prefer them.

    The model keeps its rope_theta, partial_rotary_factor and trained length (`max_position_embeddings`); of models
    with settings for each kind of layer (Gemma3) only full-attention layers are scaled. Saved as plain
    `rope_parameters`: the model loads without hf_longctx. transformers repeats its own remarks on them as log lines,
    e.g. on llama3 when the trained length is the config's.

    Args:
        type: "yarn" (https://arxiv.org/abs/2309.00071), "linear" (positions divided), "ntk" (theta *
            factor^(d/(d-2)), saved as a larger rope_theta), "dynamic" (ntk that grows with the text), "longrope"
            (https://arxiv.org/abs/2402.13753) or "llama3" (Llama 3.1).
        factor: Times the trained length, at least 1. For longrope it sets the attention factor only.
        original_max_position_embeddings: Yarn, longrope, llama3: the trained length. None: what the config says.
        attention_factor: Yarn, longrope: multiplies queries and keys each. None: from `factor`, as published.
        beta_fast, beta_slow: Yarn: turns within the trained length above which a frequency is kept (None: 32) and
            below which it is divided by `factor` (None: 1).
        mscale, mscale_all_dim: Yarn: DeepSeek's form of the attention factor.
        truncate: Yarn: round the ramp's ends to whole dims. None: yes.
        short_factor, long_factor: Longrope: a divisor for each frequency, up to the trained length and beyond it.
        low_freq_factor, high_freq_factor: Llama3: turns below which a frequency is divided (None: 1) and above which
            it is kept (None: 4).
        replace: Put this in the place of a scaling that the model already has (otherwise refused).
    """

    name: ClassVar[str] = "rope_scaling"
    summary: ClassVar[str] = "lower rotary frequencies (yarn, ntk, linear, ...): a few times the trained length"
    paper: ClassVar[str] = "https://arxiv.org/abs/2309.00071"

    type: str = "yarn"
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    short_factor: list[float] | None = None
    long_factor: list[float] | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    replace: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.type not in FIELDS:
            near = did_you_mean(self.type, FIELDS)
            raise ValueError(f"type={self.type!r}: no such RoPE scaling. {near}There are: {', '.join(FIELDS)}.")
        if self.factor is None:
            raise ValueError(f"factor=None: {self.type} needs to know how many times longer, for example factor=4.")
        if not 1 <= self.factor < math.inf:
            raise ValueError(f"factor={self.factor}: expected a number from 1, the length wanted over the trained one.")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("type", "factor", "replace") or value is None:
                continue
            if field.name not in FIELDS[self.type]:
                takes = ", ".join(("factor", *FIELDS[self.type]))
                raise ValueError(f"{field.name}={value!r}: type={self.type!r} does not take it. It takes: {takes}.")
            numbers = value if isinstance(value, list) else [value]
            if not all(type(n) in (int, float, bool) and (0 < n < math.inf or n is False) for n in numbers):
                raise ValueError(f"{field.name}={value!r}: expected numbers above 0.")
        if self.type == "longrope" and not (self.short_factor and self.long_factor):
            raise ValueError("longrope needs short_factor and long_factor, lists with a divisor for each frequency.")
        self._check_order("beta_slow", 1, "beta_fast", 32)
        self._check_order("low_freq_factor", 1, "high_freq_factor", 4)

    def __repr__(self) -> str:
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        shown = [f for f in dataclasses.fields(self) if f.name == "type" or given[f.name] != f.default]
        return f"RopeScaling({', '.join(f'{f.name}={given[f.name]!r}' for f in shown)})"

    def _check_order(self, low: str, low_default: float, high: str, high_default: float) -> None:
        below = getattr(self, low) or low_default
        above = getattr(self, high) or high_default
        if below >= above:
            raise ValueError(f"{low}={below}, {high}={above}: cut-offs in the wrong order, {low} must be the smaller.")

    def reach(self, config: Any) -> int | None:
        """`factor` times what the config says the model reads; for ntk half of that, as in `proposals`."""
        readable = readable_length(config)
        assert self.factor is not None
        times = max(self.factor / 2, 1) if self.type == "ntk" else self.factor
        return None if readable is None else int(readable * times)

    @classmethod
    def proposals(cls, tokens: int, trained: int | None) -> list[RopeScaling]:
        """Without training ntk finds most, at twice the factor that the length asks for (zero_shot_best.json)."""
        if trained is None or not cls.is_worth(tokens, trained):
            return []
        return [cls(type="ntk", factor=2 * math.ceil(tokens / trained))]

    def scaling(self, config: Any, entry: dict[str, Any]) -> dict[str, Any]:
        """The fields that are set, and what the model's own entry says of its trained length."""
        assert self.factor is not None
        dim = rotary_dim(config, entry)
        if self.type == "ntk":
            if dim <= 2:
                raise ValueError(f"type='ntk': needs more than one frequency, and {dim} dims of a head are rotated.")
            return {"rope_type": "default", "rope_theta": entry["rope_theta"] * self.factor ** (dim / (dim - 2))}
        for name in ("short_factor", "long_factor"):
            table = getattr(self, name)
            if table is not None and len(table) != dim // 2:
                raise ValueError(
                    f"{name} has {len(table)} entries; the model rotates {dim} dims, so {dim // 2} needed."
                )
        if self.truncate is False and is_nested(config):
            # TODO: take this out when transformers reads `truncate` of the layers' own entry (5.23 does not)
            raise ValueError(
                "truncate=False: transformers ignores it in configs with rope_parameters for each kind of layer. "
                "Leave it out."
            )
        given = {name: getattr(self, name) for name in FIELDS[self.type] if getattr(self, name) is not None}
        trained = entry.get("original_max_position_embeddings")
        if "original_max_position_embeddings" in FIELDS[self.type] and trained is not None:
            given.setdefault("original_max_position_embeddings", trained)
        if self.type == "llama3":
            given = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, **given}
        if "attention_factor" in given:
            given["attention_factor"] = float(given["attention_factor"])  # transformers remarks on an int
        return {"rope_type": self.type, "factor": float(self.factor), **given}
