"""What tests of the benchmark of look-ups measure with: a tiny model, a tokenizer of bytes, and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipes.benchmarks.haystacks import Haystacks
from recipes.benchmarks.retrieval.run import TINY, Run, Sizes
from tests.tiny import tiny
from tests.tokenizer_kinds import byte_tokenizer, documents

TOKENIZER = byte_tokenizer(bos=False)
SMALL: dict[str, Any] = {"vocab_size": 300, "max_position_embeddings": 128}


def encode(words: str) -> list[int]:
    return list(TOKENIZER(words, add_special_tokens=False)["input_ids"])


def made_texts(folder: Path) -> Haystacks:
    (folder / "text.txt").write_text(documents(), encoding="utf-8")
    return Haystacks(TOKENIZER, folder)


def run_of(texts: Haystacks, sizes: Sizes = TINY, **more: Any) -> Run:
    return Run(tiny(**SMALL), encode, texts, sizes, "reader", tokenizer=TOKENIZER, **more)
