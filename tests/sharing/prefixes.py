"""A document, questions about it, and what stock says to both together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx.sharing.prefix import Prefix
from hf_longctx.upstream import versions
from tests.contract.registry import close, same
from tests.tiny import left_padded, text

DOCUMENT = text(1, 23, seed=5)[0]
QUESTIONS = [text(1, n, seed=n)[0] for n in (5, 1, 7)]
IDS, MASK = left_padded(QUESTIONS)
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
LOGITS = {"return_dict_in_generate": True, "output_logits": True}


def behind(document: Tensor, ids: Tensor) -> Tensor:
    return torch.cat([document.expand(len(ids), -1), ids], 1)


def mended(setting: str) -> Any:
    """For tests of what older transformers do wrong with any cache."""
    release = versions.FIXED_FOR_FILLED_CACHES[setting]
    old = release is None or release > versions.RELEASE
    return pytest.mark.skipif(old, reason="transformers is too old for it, and it is refused")


def stock_batch(model: Any, **settings: Any) -> Tensor:
    """Document and question in every row, padded in front: where stock's windows mean the same."""
    ids, mask = left_padded([torch.cat([DOCUMENT, question]) for question in QUESTIONS])
    return model.generate(ids, attention_mask=mask, **settings)


def agree(prefix: Prefix, model: Any, document: Tensor, questions: list[Tensor], **settings: Any) -> None:
    """A padded batch of questions against stock, row by row."""
    ids, mask = left_padded(questions)
    out = prefix.generate(ids, attention_mask=mask, **{**GREEDY, **settings}, **LOGITS)
    for i, question in enumerate(questions):
        stock = model.generate(torch.cat([document, question])[None], **{**GREEDY, **settings}, **LOGITS)
        same(out.sequences[i, ids.shape[1] :], stock.sequences[0, len(document) + len(question) :], "tokens")
        close(torch.stack(out.logits)[:, i], torch.stack(stock.logits)[:, 0], "logits")
