"""Models in and out: from a folder, the Hub, a GGUF file or the example model's PyPI wheel, and saved with a method."""

from .by_id import push_generate, write_generate
from .by_id_call import generate_with
from .extend import extend
from .gguf import convert
from .resolve import load, locate
from .save import save

__all__ = ["convert", "extend", "generate_with", "load", "locate", "push_generate", "save", "write_generate"]
