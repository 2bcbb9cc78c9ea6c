"""Long-context tasks, made offline at any length for any tokenizer."""

from .haystack import Haystack
from .sample import Sample, encode, encode_parts
from .table import NAMES, RULER, make_task, samples
from .task import Task

__all__ = ["NAMES", "RULER", "Haystack", "Sample", "Task", "encode", "encode_parts", "make_task", "samples"]
