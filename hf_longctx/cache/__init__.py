"""Cache layers that keep keys un-rotated, and what any cache can be asked."""

from .base import UnrotatedLayer
from .full import FullLayer
from .sink_window import SinkWindowLayer
from .slots import KeyValues

__all__ = ["FullLayer", "KeyValues", "SinkWindowLayer", "UnrotatedLayer"]
