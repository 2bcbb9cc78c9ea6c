"""The settings of XL3M, and what they must be."""

from __future__ import annotations

import dataclasses

from ...near import did_you_mean
from ..procedure import Procedure

SCORES = ("gain", "question_nll", "entropy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmenting(Procedure):
    """How a text is cut, scored and kept: the fields of `XL3M`, which explains them."""

    segment: int = 256
    overlap: int = 32
    score: str = "gain"
    keep: float = 0.5
    key_context: int | None = None
    question_tokens: int = 64
    window: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segment < 1 or not 0 <= self.overlap < self.segment:
            raise ValueError(
                f"xl3m: segment={self.segment}, overlap={self.overlap}: expected a segment of at least 1 token, and an "
                f"overlap from 0 to less than the segment."
            )
        if self.score not in SCORES:
            near = did_you_mean(self.score, SCORES).strip()
            raise ValueError(f"xl3m: score={self.score!r}: expected one of {', '.join(SCORES)}. {near}".rstrip())
        if not 0 <= self.keep <= 1:
            raise ValueError(f"xl3m: keep={self.keep}: expected 0 (whatever there is room for) to 1 (the best only).")
        for name in ("key_context", "window", "question_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"xl3m: {name}={value}: expected at least 1 token.")
        if self.key_context is not None and self.key_context < self.segment:
            raise ValueError(
                f"xl3m: key_context={self.key_context} has no room for a segment of {self.segment} tokens. Make it "
                f"larger, or the segment smaller."
            )
