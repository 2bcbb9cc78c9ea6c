"""Hydragen: one prefix, read and stored once, for many questions or samples.

with shared_prefix(model, document_ids) as prefix:
    answers = prefix.generate(question_ids, attention_mask=mask, max_new_tokens=50)
"""

from .kept import cached_prefix
from .prefix import Prefix, load_prefix, shared_prefix
from .questions import Prompt, answers

__all__ = ["Prefix", "Prompt", "answers", "cached_prefix", "load_prefix", "shared_prefix"]
