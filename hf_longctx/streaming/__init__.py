"""Text of any length: a reader in constant memory, and conversations on it."""

from .chat import Chat
from .reader import Reader, stream

__all__ = ["Chat", "Reader", "stream"]
