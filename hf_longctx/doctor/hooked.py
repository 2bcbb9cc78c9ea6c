"""The hooks of hf_longctx in this process, what other code has put around them, and other plugins."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from ..hooks.state import foreign_functions, hook_states
from .diagnosis import Diagnosis

# packages that change models of transformers or their classes
PLUGINS = (
    "adapters",
    "attention-sinks",
    "axolotl",
    "flash-linear-attention",
    "kvpress",
    "liger-kernel",
    "minference",
    "ring-flash-attn",
    "unsloth",
)


def hooks() -> Iterator[Diagnosis]:
    """One line where all are as they were made; one more for each that is not."""
    import transformers.pipelines  # noqa: F401  (the last of the hooked modules)

    states = list(hook_states())
    lost = [one for one in states if not one.reached]
    yield Diagnosis("hooks", f"{len(states) - len(lost)} of {len(states)} in place", wrong=bool(lost))
    for one in lost:
        by = f"replaced by {one.over}" if one.over else "not installed (hf_longctx.uninstall)"
        yield Diagnosis("hook", f"{one.place}: {by}", wrong=True)
    for one in states:
        around = [f"under a wrap of {one.over}"] if one.reached and one.over else []
        around += [f"over one of {one.under}"] if one.under else []
        if around:
            yield Diagnosis("hook", f"{one.place}: {' and '.join(around)}")


def plugins() -> Iterator[Diagnosis]:
    """Other packages that change models, and attention functions that others have registered."""
    installed = []
    for name in PLUGINS:
        try:
            installed.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    yield Diagnosis("other plugins", ", ".join(installed) or f"none of {', '.join(PLUGINS)}")
    found = [f"{name!r} of {home}" for name, home in foreign_functions()]
    if found:
        yield Diagnosis("attention", f"registered by others: {', '.join(found)}")
