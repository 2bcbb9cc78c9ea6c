"""Evaluation of a CLIP: retrieval by the published protocols, zero-shot classes, and by caption length and position.

from hf_longctx.clip.evaluation import evaluate_retrieval, read_protocol
evaluate_retrieval(model, tokenizer, processor, read_protocol("urban1k", "Urban1k"))
"""

from .bins import Bin, by_bins, caption_lengths
from .protocols import PROTOCOLS, Retrieval, read_protocol
from .recall import Recall, found, recall
from .run import PairsReport, evaluate_pairs, evaluate_retrieval, evaluate_zero_shot
from .zero_shot import TEMPLATES, class_embeddings, classify, read_classes

__all__ = [
    "PROTOCOLS",
    "TEMPLATES",
    "Bin",
    "PairsReport",
    "Recall",
    "Retrieval",
    "by_bins",
    "caption_lengths",
    "class_embeddings",
    "classify",
    "evaluate_pairs",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "found",
    "read_classes",
    "read_protocol",
    "recall",
]
