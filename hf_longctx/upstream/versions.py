"""The versions of transformers: those that hf_longctx is tested with, and what earlier ones do wrong."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import transformers
from packaging.version import Version

logger = logging.getLogger("hf_longctx")

# every test runs on the last two of these, the contract on the first
TESTED = ("5.17", "5.23", "5.24")

RELEASE = tuple(map(int, transformers.__version__.split(".")[:2]))
# before 5.21 such a model raises UnboundLocalError in the second forward past its trained length
LONGROPE_PER_LAYER = RELEASE >= (5, 21)
# settings that `generate` gets wrong when its cache has read already, and the release that mended it, if any did:
# assisted decoding gives its first forward all of input_ids, though the cache has most of them
FIXED_FOR_FILLED_CACHES: dict[str, tuple[int, int] | None] = {
    "prefill_chunk_size": (5, 21),
    "prompt_lookup_num_tokens": None,
    "assistant_model": None,
    "assistant_early_exit": None,
}

SAY_VERSION = (
    f"This is transformers {transformers.__version__}; hf_longctx is tested with {', '.join(TESTED)}. Use one of "
    f"these, or report it."
)


def untested() -> bool:
    """Is this transformers newer than the newest that was tested?"""
    return Version(transformers.__version__).release[:2] > Version(TESTED[-1]).release


@functools.cache
def warn_of_untested() -> None:
    """Say once in a process that this transformers is newer than those tested. To be called after the self-check."""
    if untested():
        logger.warning(
            "transformers %s is newer than what hf_longctx was tested with (up to %s); the self-check passed.",
            transformers.__version__,
            TESTED[-1],
        )


def check_filled_cache(setting: Callable[[str], Any]) -> None:
    """ValueError for settings that this `generate` gets wrong with a cache. `setting` looks one up by its name."""
    for name, release in FIXED_FOR_FILLED_CACHES.items():
        value = setting(name)
        if value is not None and (release is None or release > RELEASE):
            newer = "" if release is None else f", or install transformers {release[0]}.{release[1]} or newer"
            given = value if isinstance(value, int) else type(value).__name__
            raise ValueError(
                f"{name}={given}: transformers {transformers.__version__} reads a cache that is not empty "
                f"wrongly with it. Leave it out{newer}."
            )
