"""The self-check on a release of transformers that was not tested: is a cached step what a whole text gives?

`following` sees that every layer finds the cache and its positions. A release may change what happens around the layers
as well, so that texts at once are right and generated ones are not; this compares the model's output itself.
"""

from __future__ import annotations

from typing import Any

import torch

from ..ops.checked import layer_tolerance, relative_error
from ..upstream.caches import cache_out
from ..upstream.versions import SAY_VERSION
from .pieces import forward, handed_to
from .watch import evaluating

TOKENS = 6


@torch.no_grad()
def compare_step(decoder: Any) -> None:
    """Read a few tokens at once, and again with the last of them in a step over the cache.

    Args:
        decoder: With an attention method.

    Raises:
        ValueError: The outputs of the last token differ by more than rounding, or a forward failed.
    """
    try:
        with evaluating(decoder), torch.compiler.set_stance("force_eager"):
            whole = forward(decoder, handed_to(decoder, 0, TOKENS, None) | {"use_cache": False})
            read = forward(decoder, handed_to(decoder, 0, TOKENS - 1, None))
            step = forward(decoder, handed_to(decoder, TOKENS - 1, 1, cache_out(read)))
        truth, got = whole[0][:, -1], step[0][:, -1]
        off = relative_error(got, truth)
    except Exception as error:
        raise _refused(decoder, f"it raised {type(error).__name__}: {error}") from error
    if not off <= layer_tolerance(truth.dtype):
        raise _refused(decoder, f"its output differs by {off:.1e} (relative) from that of the whole text")


def _refused(decoder: Any, why: str) -> ValueError:
    return ValueError(
        f"{type(decoder).__name__}: refused by the self-check, which reads a token in a step over the cache: {why}. "
        f"{SAY_VERSION}"
    )
