"""Cache layers that keep keys un-rotated, and what any cache can be asked."""

from .base import UnrotatedLayer
from .full import FullLayer
from .retrieving import RetrievingLayer
from .sink_window import SinkWindowLayer
from .slots import KeyValues
from .store import Store

__all__ = ["FullLayer", "KeyValues", "RetrievingLayer", "SinkWindowLayer", "Store", "UnrotatedLayer"]
