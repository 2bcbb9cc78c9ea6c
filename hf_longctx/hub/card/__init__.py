"""The card of a checkpoint: README.md with metadata, how it is loaded, what was measured, and its limits."""

from .evidence import read_results
from .facts import check_base_model
from .own import is_ours_or_blank, is_unedited
from .write import WrittenCard, write_card

__all__ = ["WrittenCard", "check_base_model", "is_ours_or_blank", "is_unedited", "read_results", "write_card"]
