"""How many tokens of a long text a forward pass reads, where nobody says."""

from __future__ import annotations

from transformers import Cache, PreTrainedModel

from ..cache.stock import unrotated_layers

LEAST, MOST = 16_384, 65_536  # tokens
# operations of a forward pass that take a GPU longer than the host takes to launch its kernels, by some margin: with
# 16,384 tokens an H200 computes 43 ms of SmolLM2-135M, and the host launches for 68
WORK = 2e13


def default_chunk(model: PreTrainedModel, cache: Cache) -> int:
    """A power of two tokens, the more the smaller the model is, so that a GPU need not wait for the host.

    The least on a CPU, and where a layer is not served by a method: stock attention over a chunk takes memory and time
    that grow with the square of it.

    Args:
        model: Which reads.
        cache: That it reads into, before the first forward.
    """
    served = bool(cache.layers) and len(unrotated_layers(cache)) == len(cache.layers)
    if model.device.type != "cuda" or not served:
        return LEAST
    tokens, most = LEAST, min(WORK / (2 * model.num_parameters()), MOST)
    while 2 * tokens <= most:
        tokens *= 2
    return tokens
