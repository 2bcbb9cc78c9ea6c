"""The versions of transformers that hf_longctx is tested with."""

from __future__ import annotations

import functools
import logging

import transformers
from packaging.version import Version

logger = logging.getLogger("hf_longctx")

# every test runs on the last two of these, the contract on the first
TESTED = ("5.17", "5.23", "5.24")

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
