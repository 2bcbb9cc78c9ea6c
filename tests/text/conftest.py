from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from tests.tokenizer_kinds import byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(bos=False)


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(bos=True)
