"""The tiny models and tokenizers of evaluation's tests."""

from tests.evaluation.conftest import bos_tokenizer, llama, tokenizer

__all__ = ["bos_tokenizer", "llama", "tokenizer"]
