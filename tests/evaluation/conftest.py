"""Tiny models and a tokenizer of one token a byte, all made in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from tests.tokenizer_kinds import byte_tokenizer


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """These matrices are so small that handing them out to threads takes most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(bos=False)


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(bos=True)


SIZES: dict[str, Any] = {
    "vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.3)).eval()


@pytest.fixture
def mistral() -> MistralForCausalLM:
    """A stock model whose cache is bounded: nothing older than 16 tokens is kept."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SIZES, initializer_range=0.3, sliding_window=16)).eval()


class Oracle:
    """Answers with the key if it is in what it was given, as a model of perfect recall would."""

    device = torch.device("cpu")

    class generation_config:
        eos_token_id = 257

    def __init__(self, tokenizer: PreTrainedTokenizerFast, answer: Callable[[str], str]) -> None:
        self.tokenizer, self.answer = tokenizer, answer
        self.seen: list[torch.Tensor] = []
        self.configs: list[Any] = []

    def generate(self, input_ids: torch.Tensor, *, attention_mask: Any, generation_config: Any) -> torch.Tensor:
        assert attention_mask.shape == input_ids.shape
        self.seen.append(input_ids)
        self.configs.append(generation_config)
        texts = [self.answer(self.tokenizer.decode(row)).ljust(8)[:8] for row in input_ids]
        return torch.cat([input_ids, torch.tensor([self.tokenizer(text)["input_ids"] for text in texts])], dim=1)


class Louder:
    """A method in name only: twice the logits while it is on."""

    kind, name, reads_documents = "method", "louder", False

    def __init__(self) -> None:
        self.applied = 0

    def check_room(self, model: Any, n_tokens: int) -> None:
        pass

    @contextmanager
    def running(self, model: Any) -> Any:
        self.applied += 1
        model.lm_head.weight.data.mul_(2)
        try:
            yield {}
        finally:
            model.lm_head.weight.data.div_(2)

    def spec(self) -> dict[str, Any]:
        return {"name": "louder"}

    def __repr__(self) -> str:
        return "Louder()"
