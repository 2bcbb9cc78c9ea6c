"""What a load gave, in a word, and what is wrong with it."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_longctx.upstream.installing import INSTALL
from tests.hub.matrix.making import SEGMENTS
from tests.hub.matrix.references import Reference
from tests.hub.matrix.rows import DANGLING, FILES_ONLY, OURS, REFUSED, STOCK, Row

MERGED = 1e-5  # merged weights are rounded once more; everything else is equal to the bit
# what transformers says of a private repository to a reader without a token, and to one with a wrong one
UNSEEN = ("is not a local folder and is not a valid model identifier", "Client error '401 Unauthorized'")


@dataclass(frozen=True)
class Judged:
    """A row with what was found, the largest difference of numbers from what was expected, and what is wrong."""

    row: Row
    found: str
    distance: float | None
    wrong: list[str]
    seconds: float


def judge(row: Row, answer: dict[str, Any], known: dict[tuple[str, bool], Reference]) -> Judged:
    """Compare the answer of a probe with the rule."""
    wrong, distance = [], None
    if "error" in answer:
        found = _error(answer)
    elif row.way in FILES_ONLY:
        found = STOCK if answer["class"].startswith("transformers.") else answer["class"]
    else:
        found, distance = _model(row, answer, known)
        wrong += _wrong_model(row, answer, known)
    if found != row.expected:
        wrong.insert(0, f"expected {row.expected}, found {found}")
    if answer["imported_before"] != (row.package == "imported"):
        wrong.append(f"hf_longctx is {'' if answer['imported_before'] else 'not '}imported before")
    if answer["imported"] != row.imports and row.expected != REFUSED:
        wrong.append(f"hf_longctx is {'' if answer['imported'] else 'not '}imported afterwards")
    return Judged(row, found, distance, wrong, answer["seconds"])


def _error(answer: dict[str, Any]) -> str:
    """Whose error it is; one that nobody expects in its own words."""
    lines = answer["text"].splitlines()
    if answer["error"] == "ImportError" and len(lines) == 1 and f"To install it: {INSTALL}. Or load" in lines[0]:
        return OURS
    if answer["error"] == "OSError" and "does not appear to have a file named modeling_hf_longctx.py" in lines[0]:
        return DANGLING
    if answer["error"] == "OSError" and any(words in answer["text"] for words in UNSEEN):
        return REFUSED
    return f"{answer['error']}: {lines[0] if lines else ''}"


def _model(row: Row, answer: dict[str, Any], known: dict[tuple[str, bool], Reference]) -> tuple[str, float]:
    """Which reference the numbers are, and how far they are from the expected one."""
    limit = MERGED if row.published == "merged" else 0.0
    far = {key: _distance(answer["numbers"], _numbers(row, reference)) for key, reference in known.items()}
    near = [key for key, distance in far.items() if distance <= limit]
    words = [carries + (" with the adapter" if adapted and not row.adapted else "") for carries, adapted in near]
    return " and ".join(words) or "none of the models", far.get((row.expected, row.adapted), float("inf"))


def _numbers(row: Row, reference: Reference) -> Tensor:
    return reference.hidden if row.way in ("base", "classification") else reference.logits


def _distance(numbers: str, reference: Tensor) -> float:
    given = torch.from_numpy(np.frombuffer(base64.b64decode(numbers), np.float32).copy())
    if given.numel() != reference.numel() or not given.isfinite().all():
        return float("inf")
    return float((given - reference.flatten()).abs().max())


def _wrong_model(row: Row, answer: dict[str, Any], known: dict[tuple[str, bool], Reference]) -> list[str]:
    """What is wrong beside the numbers: the class, the tokens of `generate`, what is kept with the model."""
    wrong = []
    place = "hf_longctx.models.LongCtx" if row.our_class else "transformers.models.llama.modeling_llama.Llama"
    if not answer["class"].startswith(place):
        wrong.append(f"of the class {answer['class']}")
    reference = known.get((row.expected, row.adapted))
    if reference is not None and answer.get("tokens", reference.tokens) != reference.tokens:
        wrong.append(f"generates {answer['tokens']}, expected {reference.tokens}")
    if reference is not None and answer.get("chat", reference.chat) != reference.chat:
        wrong.append(f"answers {answer['chat']!r}, expected {reference.chat!r}")
    kept = {"name": "xl3m", **SEGMENTS}
    if row.published.startswith("xl3m") and not kept.items() <= (answer.get("xl3m") or {}).items():
        wrong.append(f"has {answer.get('xl3m')!r} as settings of XL3M, expected {kept}")
    return wrong
