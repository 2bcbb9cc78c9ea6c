"""How sure a model is, and how expected a question, after one segment of a text: one forward per batch of segments."""

# N segments, S tokens of a segment, Q tokens of the question, V vocabulary
from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

LOGITS = {"cpu": 2**25}  # logits of a batch, most; elsewhere 2**29, a gigabyte of bfloat16
TOKENS = {"cpu": 2**12}  # tokens of a batch, most; elsewhere 2**16, where an H100 is busy enough
FLOATS = 2**26  # logits that are turned into fp32 at once


class Scorer:
    """Reads `[head; segment; question]` for many segments at once: rows of one length, so no padding and no mask.

    The question has at least one token. With `compiled` it will be called inside `layers_compiled`.
    """

    def __init__(self, model: Any, head: list[int], question: list[int], compiled: bool = False) -> None:
        self.model = model
        self._compiled = compiled
        # of offloaded weights accelerate's hooks know where they are computed with
        self.device = torch.device("cpu") if model.device.type == "meta" else model.device
        self.head_H = torch.tensor(head, dtype=torch.long, device=self.device)
        self.question_Q = torch.tensor(question, dtype=torch.long, device=self.device)
        self._kept = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._vocabulary = model.get_input_embeddings().weight.shape[0]

    def rows(self, segment: int) -> int:
        """How many segments of this length fit a batch."""
        kind = self.device.type
        length = len(self.head_H) + segment + len(self.question_Q)
        scored = len(self.question_Q) if self._kept else length
        by_logits = LOGITS.get(kind, 2**29) // (scored * self._vocabulary)
        return max(1, min(TOKENS.get(kind, 2**16) // length, by_logits))

    @torch.inference_mode()
    def __call__(self, ids_NS: Tensor) -> Tensor:
        """Score a batch: (N, Q) fp32 on the model's device, in nats.

        They are the negative log-likelihood (NLL) of each token of the question but the first, and the entropy of the
        distribution after the last.

        The first token's likelihood says where the segment was cut, not what is in it. A batch that does not fit the
        GPU's memory is scored in halves.
        """
        if self.device.type == "cuda" and ids_NS.device.type == "cpu":
            ids_NS = ids_NS.contiguous().pin_memory()
        ids_NS = ids_NS.to(self.device, non_blocking=True)
        try:
            return self._score(ids_NS)
        except torch.OutOfMemoryError:
            if len(ids_NS) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(ids_NS) // 2
        return torch.cat([self(ids_NS[:half]), self(ids_NS[half:])])

    def _score(self, ids_NS: Tensor) -> Tensor:
        n, q = len(ids_NS), len(self.question_Q)
        if self._compiled and n == 1:  # a batch of one would be compiled separately
            return self._score(ids_NS.expand(2, -1))[:1]
        row_NL = torch.cat([self.head_H.expand(n, -1), ids_NS, self.question_Q.expand(n, -1)], 1)
        keep = {"logits_to_keep": q} if self._kept else {}
        logits_NQV = self.model(input_ids=row_NL, use_cache=False, **keep).logits[:, -q:]
        # the logits of one token are those of the next
        target_NQ = self.question_Q[1:].to(logits_NQV.device).expand(n, -1)
        at_once = max(1, FLOATS // (q * logits_NQV.shape[-1]))
        parts = zip(logits_NQV.split(at_once), target_NQ.split(at_once), strict=True)
        return torch.cat([_statistics(logits, target) for logits, target in parts]).to(self.device)


def _statistics(logits_NQV: Tensor, target_NQ: Tensor) -> Tensor:
    logits_NQV = logits_NQV.float()
    total_NQ = logits_NQV.logsumexp(-1)
    nll_NQ = total_NQ[:, :-1] - logits_NQV[:, :-1].gather(-1, target_NQ[..., None])[..., 0]
    last_NV = logits_NQV[:, -1] - total_NQ[:, -1:]
    # a token that cannot come (logit -inf) adds nothing
    entropy_N = torch.special.entr(last_NV.exp()).sum(-1)
    return torch.cat([nll_NQ, entropy_N[:, None]], -1)


def gain(nll_NQ: Tensor, usual_Q: Tensor) -> Tensor:
    """(N,) nats per token: by how much less surprising the question is after a segment than after the usual one.

    `nll_NQ` is the NLL of the question's tokens after each segment, `usual_Q` their medians over the text. Only tokens
    that became less surprising count: most of the spread of the plain mean is what a segment's style does to the words
    around the ones that matter. Subtracting one number from every segment's mean, such as the question's NLL alone,
    would leave their order as it is.
    """
    return (usual_Q - nll_NQ).clamp(min=0).mean(-1)
