"""Models in and out: from a folder, the Hub, a GGUF file or the example model's PyPI wheel, and saved with a method."""

from .extend import extend
from .gguf import convert
from .resolve import load, locate
from .save import save

__all__ = ["convert", "extend", "load", "locate", "save"]
