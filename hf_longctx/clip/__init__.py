"""Long text in CLIP (Long-CLIP, Zhang et al. 2024): stretch the position table, train, convert published weights.

from hf_longctx.clip import stretch_checkpoint
stretch_checkpoint("openai/clip-vit-base-patch32", "clip-248")  # a stock checkpoint that reads 248 tokens
"""

from hf_longctx.clip.checkpoint import stretch_checkpoint
from hf_longctx.clip.components import primary_components
from hf_longctx.clip.convert import convert
from hf_longctx.clip.finetune import FineTuning, finetune
from hf_longctx.clip.freeze import FrozenRows
from hf_longctx.clip.gather import gather_rows
from hf_longctx.clip.long_prompt import encode_long_prompt
from hf_longctx.clip.loss import LongClipLoss, contrastive_loss, long_clip_loss
from hf_longctx.clip.pairs import Pair, read_pairs
from hf_longctx.clip.preference import caption_embeddings, common_direction, preference_loss, preference_score
from hf_longctx.clip.stretch import stretch_positions
from hf_longctx.clip.table import is_interpolated, stretch_table, stretched_length
from hf_longctx.clip.tokens import stretch_tokenizer

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
    "finetune",
    "gather_rows",
    "is_interpolated",
    "long_clip_loss",
    "preference_loss",
    "preference_score",
    "primary_components",
    "read_pairs",
    "stretch_checkpoint",
    "stretch_positions",
    "stretch_table",
    "stretch_tokenizer",
    "stretched_length",
]
