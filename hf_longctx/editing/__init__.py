"""PIE: a text is edited after a model has read it, and the model's cache follows without a full re-read.

session = EditSession(model, tokenizer, source)
session.replace(120, 124, "name")
session.complete(max_new_tokens=32)
"""

from .batch import EditedBatch, edit_batch
from .edit import EditReport, edit
from .graph import forget as forget_graph
from .plan import REPAIR
from .session import EditSession

__all__ = ["REPAIR", "EditReport", "EditSession", "EditedBatch", "edit", "edit_batch", "forget_graph"]
