"""Procedures that `generate` calls (`custom_generate=`), and CUDA graphs for its steps. They do not change the model."""

from .share_beginning import share_beginning
from .xl3m import XL3M, Kept, Selection, xl3m
from .xl3m.prompt import around_text, text_before

__all__ = ["XL3M", "Kept", "Selection", "around_text", "share_beginning", "text_before", "xl3m"]
