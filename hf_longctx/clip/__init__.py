"""Long text in CLIP (Long-CLIP, Zhang et al. 2024): stretch the position table, train, convert published weights.

from hf_longctx.clip import stretch_checkpoint
stretch_checkpoint("openai/clip-vit-base-patch32", "clip-248")  # a stock checkpoint that reads 248 tokens
"""

from .checkpoint import stretch_checkpoint
from .components import primary_components
from .convert import convert
from .evaluation import evaluate_pairs, evaluate_retrieval, evaluate_zero_shot, read_classes, read_protocol
from .finetune import finetune
from .freeze import FrozenRows
from .gather import gather_rows
from .long_prompt import encode_long_prompt
from .loss import LongClipLoss, contrastive_loss, long_clip_loss
from .pairs import Pair, read_pairs
from .preference import caption_embeddings, common_direction, preference_loss, preference_score
from .settings import FineTuning
from .stretch import stretch_positions
from .table import is_interpolated, stretch_table, stretched_length
from .tokens import stretch_tokenizer

__all__ = [
    "FineTuning",
    "FrozenRows",
    "LongClipLoss",
    "Pair",
    "caption_embeddings",
    "common_direction",
    "contrastive_loss",
    "convert",
    "encode_long_prompt",
    "evaluate_pairs",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "finetune",
    "gather_rows",
    "is_interpolated",
    "long_clip_loss",
    "preference_loss",
    "preference_score",
    "primary_components",
    "read_classes",
    "read_pairs",
    "read_protocol",
    "stretch_checkpoint",
    "stretch_positions",
    "stretch_table",
    "stretch_tokenizer",
    "stretched_length",
]
