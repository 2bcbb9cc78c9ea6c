"""Files that a run leaves: finished cells, answers, whole-file writes, and fingerprints of models."""

from .answers import AnswerFile
from .cells import CellStore
from .files import append_line, check_folder, claimed, write_whole
from .fingerprint import model_digest, tokenizer_digest, weights_digest

__all__ = [
    "AnswerFile",
    "CellStore",
    "append_line",
    "check_folder",
    "claimed",
    "model_digest",
    "tokenizer_digest",
    "weights_digest",
    "write_whole",
]
