"""The whole report, from the machine to the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ..storage.secrets import anonymous
from .diagnosis import Diagnosis
from .hooked import hooks, plugins
from .ledger import upstream
from .machine import hub, kernels, machine
from .model import model_findings
from .releases import releases, self_check


def examine(model: str | None = None) -> Iterator[Diagnosis]:
    """What works in this process and what does not. Changes nothing, and names no folder and no token.

    Args:
        model: A folder or a Hub id, whose small files are looked at.
    """
    parts: list[Callable[[], Iterator[Diagnosis]]]
    parts = [machine, releases, self_check, hub, kernels, hooks, plugins, upstream]
    named = []
    if model is not None:
        parts.append(lambda: model_findings(model))
        named = [model] if os.sep in model and Path(model).expanduser().exists() else []
    for part in parts:
        for one in _survived(part):
            yield one._replace(text=anonymous(" ".join(one.text.split()), *named))


def _survived(part: Callable[[], Iterator[Diagnosis]]) -> Iterator[Diagnosis]:
    """What one part finds; where it fails, that is a finding too, and the others are still to come."""
    try:
        yield from part()
    except Exception as error:  # whatever is broken here is what the report is for
        yield Diagnosis("not looked at", f"{type(error).__name__}: {error}", wrong=True)
