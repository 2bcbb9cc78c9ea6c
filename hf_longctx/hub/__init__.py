"""Models in and out: from a folder, the Hub, a GGUF file or the example model's PyPI wheel, and saved or published."""

from .by_id import push_generate, write_generate
from .by_id_call import generate_with
from .card import write_card
from .check import check, repair
from .draft import save_for_hub
from .extend import extend
from .gguf import convert
from .push import push
from .resolve import load, locate
from .save import save

__all__ = [
    "check",
    "convert",
    "extend",
    "generate_with",
    "load",
    "locate",
    "push",
    "push_generate",
    "repair",
    "save",
    "save_for_hub",
    "write_card",
    "write_generate",
]
