"""Documents and chats packed into rows of one length, for stock trainers."""

from .chats import chat_documents
from .collate import PackCollator
from .jsonl import read_chats
from .packs import Packs, pack

__all__ = ["PackCollator", "Packs", "chat_documents", "pack", "read_chats"]
