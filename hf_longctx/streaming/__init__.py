"""Text without end, read and written in constant memory: `stream`, the `Reader` it returns, and a `Chat` on top."""

from .chat import Chat
from .reader import Reader, stream

__all__ = ["Chat", "Reader", "stream"]
