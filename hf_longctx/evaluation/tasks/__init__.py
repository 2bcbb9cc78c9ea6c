"""Long-context tasks, made offline at any length for any tokenizer."""

from hf_longctx.evaluation.tasks.haystack import Haystack
from hf_longctx.evaluation.tasks.sample import Sample, encode, encode_parts
from hf_longctx.evaluation.tasks.table import NAMES, RULER, make_task, samples
from hf_longctx.evaluation.tasks.task import Task

__all__ = ["NAMES", "RULER", "Haystack", "Sample", "Task", "encode", "encode_parts", "make_task", "samples"]
