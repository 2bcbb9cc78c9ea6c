"""Text of any length: a reader in constant memory, and conversations on it."""
