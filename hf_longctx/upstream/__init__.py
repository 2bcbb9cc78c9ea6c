"""What differs between the versions of transformers, in one place, and the cures of what is wrong in them."""

from .applying import Shim, active, applied, apply

__all__ = ["Shim", "active", "applied", "apply"]
