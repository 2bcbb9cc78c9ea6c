"""Token ids of texts, prompts and batches, as a model reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..upstream.installing import Package

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

# transformers asks for it when the first chat is rendered
CHAT_TEMPLATES = Package("chat templates are rendered by jinja2", ("jinja2",), "pip install 'jinja2>=3.1'")


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text alone, without the tokenizer's own first and last tokens."""
    # a text longer than the trained length is the purpose here, not worth a warning
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []


def bos_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-text token as a list, or an empty one for a tokenizer that does not add it by itself."""
    ids = list(tokenizer("x")["input_ids"])
    return ids[:1] if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else []


def render(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> str:
    """A chat as the text that the model continues."""
    text: Any = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return str(text)


def prompt_inputs(tokenizer: PreTrainedTokenizerBase, text: str) -> Any:
    """A prompt's tensors for `generate`: in the tokenizer's chat template if it has one, else as it is."""
    if not tokenizer.chat_template:
        return tokenizer(text, return_tensors="pt", verbose=False)
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        tokenizer_kwargs={"verbose": False},
    )


def left_pad(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of ids as a batch that ends together: ids and attention mask, [rows, longest]."""
    import torch

    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)
