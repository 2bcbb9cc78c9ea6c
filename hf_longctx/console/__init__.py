"""Text for people on a terminal: progress, lengths and sizes."""

from .progress import Progress, counted
from .units import parse_bytes, parse_lengths, parse_tokens, show_bytes, show_seconds

__all__ = ["Progress", "counted", "parse_bytes", "parse_lengths", "parse_tokens", "show_bytes", "show_seconds"]
