"""Short hashes that tell models apart."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

# what a config may say differently though every key of a cache is the same
INCIDENTAL = ("transformers_version", "_name_or_path", "use_cache", "architectures", "dtype")


def weights_digest(model: Any) -> str:
    """A short hash of the config and of a few values of every weight: tells models without a name apart."""
    config = json.dumps(model.config.to_dict(), sort_keys=True, default=str)
    return _digest(f"{config}{model.config._attn_implementation}", model)


def model_digest(model: Any) -> str:
    """The same, of what decides a cache's contents: not the folder it came from, nor which kernel reads it."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in INCIDENTAL}
    return _digest(json.dumps(config, sort_keys=True, default=str), model)


def _digest(config: str, model: Any) -> str:
    digest = hashlib.sha256(config.encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        # Offloaded weights have no values to look at.
        if weight.device.type != "meta":
            few = weight.detach().flatten()[:8].contiguous().view(torch.uint8)
            digest.update(few.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
