"""Short hashes that identify models and tokenizers."""

from __future__ import annotations

import hashlib
import json
from typing import Any

# fields of a config that change no key of a cache
INCIDENTAL = ("transformers_version", "_name_or_path", "use_cache", "architectures", "dtype")


def weights_digest(model: Any) -> str:
    """A short hash of the config and of a few values of every weight, which identifies a model without a name."""
    config = json.dumps(model.config.to_dict(), sort_keys=True, default=str)
    return _digest(f"{config}{model.config._attn_implementation}", model)


def model_digest(model: Any) -> str:
    """A short hash of everything that decides a cache's contents: neither the model's folder nor its kernel."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in INCIDENTAL}
    return _digest(json.dumps(config, sort_keys=True, default=str), model)


def tokenizer_digest(tokenizer: Any) -> str:
    """A short hash of everything that decides a tokenizer's ids for a text or a chat."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    own = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    settings = [type(tokenizer).__name__, tokenizer.chat_template, sorted(map(str, tokenizer.all_special_tokens))]
    return hashlib.sha256(f"{own}{json.dumps(settings, default=str)}".encode()).hexdigest()[:16]


def _digest(config: str, model: Any) -> str:
    import torch

    digest = hashlib.sha256(config.encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        # Offloaded weights have no values to look at.
        if weight.device.type != "meta":
            few = weight.detach().flatten()[:8].contiguous().view(torch.uint8)
            digest.update(few.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
