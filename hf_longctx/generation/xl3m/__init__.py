"""Procedures around `generate` that read a text in segments. Not patches: the model is not changed."""

from .prompt import around_text, text_before
from .selection import Kept, Selection
from .xl3m import XL3M, xl3m

__all__ = ["XL3M", "Kept", "Selection", "around_text", "text_before", "xl3m"]
