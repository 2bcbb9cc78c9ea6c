"""Where a model comes from: a folder, the Hub, a GGUF file or the PyPI wheel of the model our examples use."""

from .extend import extend
from .gguf import convert
from .resolve import load, locate
from .save import save

__all__ = ["convert", "extend", "load", "locate", "save"]
