"""Attention of a few tokens, at any places of one long text, to all that stands before each: for a CUDA graph.

The keys are cut into parts, so that a few queries fill a whole card, and every cut between parts that may be seen and
parts that may not lies at the beginning of a run of tokens. What is seen follows from tensors, not from shapes: the
same recorded kernels serve every edit. Parts are merged by log-sum-exp (https://arxiv.org/abs/2205.14135).
"""

# H query heads, G key/value heads, L queries, S columns of the keys, P parts, D head dim
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "longctx_few_queries"
PART = 2048  # keys of a part


@dataclass
class Places:
    """Where the queries stand, as tensors that may be filled anew between two runs.

    Attributes:
        pos_L: positions, rising within a run.
        run_L: the position at which each one's run begins. Keys from there on are seen if they are queries' own.
        cuts_P: (P + 1,) int32, rising: the parts are between two of them. No run begins inside a part.
    """

    pos_L: Tensor
    run_L: Tensor
    cuts_P: Tensor
    seen: tuple[Tensor, Tensor] | None = None  # what `look` found, inside `using`: the same for all layers

    @classmethod
    def empty(cls, queries: int, columns: int, runs: int, device: torch.device) -> Places:
        return cls(
            torch.zeros(queries, dtype=torch.long, device=device),
            torch.zeros(queries, dtype=torch.long, device=device),
            torch.zeros(cls.bounds(columns, runs), dtype=torch.int32, device=device),
        )

    @staticmethod
    def bounds(columns: int, runs: int) -> int:
        """P + 1 for so many columns, and runs at most."""
        return -(-columns // PART) + runs + 1

    def fill(self, spans: list[tuple[int, int]], trash: int) -> None:
        """Runs (start, end) in order; queries that are left over stand at `trash` and are to be ignored.

        On the host, without threads: see `cache/difference.py`.
        """
        pos_L, run_L, at = self.pos_L.numpy(), self.run_L.numpy(), 0
        for start, end in spans:
            pos_L[at : at + end - start] = np.arange(start, end)
            run_L[at : at + end - start] = start
            at += end - start
        pos_L[at:] = run_L[at:] = trash
        last = spans[-1][0]
        cuts = sorted({*range(0, last, PART), *(start for start, _ in spans), 0})
        cuts += [last] * (len(self.cuts_P) - len(cuts))
        self.cuts_P.numpy()[:] = cuts

    def look(self) -> tuple[Tensor, Tensor]:
        """(P, L): which parts each query sees; (L, L): which of the queries' own keys."""
        cuts, runs, pos = self.cuts_P, self.run_L, self.pos_L
        seen_PL = (cuts[1:, None] <= runs) & (cuts[1:] > cuts[:-1])[:, None]
        return seen_PL, (runs[:, None] == runs) & (pos[:, None] >= pos)


def attend(q_HLD: Tensor, k_GSD: Tensor, v_GSD: Tensor, places: Places, scale: float) -> Tensor:
    """(L, H, D): each query over the keys before its run, and over those of its run up to itself.

    Keys and values of the queries' own columns are in `k` and `v` already.
    """
    cuts = places.cuts_P
    seen_PL, same_LL = places.seen or places.look()
    out_PLHD, lse_PLH = _parts(q_HLD, k_GSD, v_GSD, cuts, scale)
    lse_PLH = torch.where(seen_PL[..., None], lse_PLH, float("-inf"))
    # the queries among themselves: few enough for a plain product
    q_GQLD = q_HLD.float().unflatten(0, (len(k_GSD), -1))
    k_G1LD, v_G1LD = (x.index_select(1, places.pos_L)[:, None].float() for x in (k_GSD, v_GSD))
    score_HLL = (q_GQLD @ k_G1LD.transpose(-1, -2) * scale).masked_fill(~same_LL, float("-inf"))
    own_HLD = (score_HLL.softmax(-1) @ v_G1LD).flatten(0, 1)
    own_HL = score_HLL.logsumexp(-1).flatten(0, 1)
    everything = torch.cat([lse_PLH, own_HL.T[None]])
    weight_PLH1 = everything.softmax(0)[..., None]
    # a part without keys comes out as 0
    out_LHD = (weight_PLH1[:-1] * out_PLHD).sum(0) + weight_PLH1[-1] * own_HLD.transpose(0, 1)
    return out_LHD.to(q_HLD.dtype)


def _parts(q_HLD: Tensor, k_GSD: Tensor, v_GSD: Tensor, cuts_P: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(P, L, H, D) and the log-sum-exps (P, L, H): all queries over each part."""
    L, P = q_HLD.shape[1], len(cuts_P) - 1
    q_LHD = q_HLD.transpose(0, 1)
    if not q_HLD.is_cuda:
        return _parts_plain(q_HLD, k_GSD, v_GSD, cuts_P, scale)
    starts = torch.arange(0, (P + 1) * L, L, dtype=torch.int32, device=cuts_P.device)
    # parts without keys and queries that may not see a part are told apart by the caller
    out, lse = torch.ops.aten._flash_attention_forward(
        q_LHD.repeat(P, 1, 1),
        k_GSD.transpose(0, 1),
        v_GSD.transpose(0, 1),
        starts,
        cuts_P,
        L,
        PART,
        0.0,
        False,
        False,
        scale=scale,
    )[:2]
    return out.unflatten(0, (P, L)), lse.T.unflatten(0, (P, L))


def _parts_plain(q_HLD: Tensor, k_GSD: Tensor, v_GSD: Tensor, cuts_P: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """What the kernel computes, in plain steps, for any device and dtype."""
    group = len(q_HLD) // len(k_GSD)
    outs, lses = [], []
    for start, end in zip(cuts_P[:-1].tolist(), cuts_P[1:].tolist(), strict=True):
        k, v = (x[:, start:end].float().repeat_interleave(group, 0) for x in (k_GSD, v_GSD))
        score = q_HLD.float() @ k.transpose(-1, -2) * scale
        outs.append((score.softmax(-1) @ v).transpose(0, 1))
        lses.append(score.logsumexp(-1).T)
    return torch.stack(outs), torch.stack(lses)


_places: list[Places] = []  # of the forward that runs inside `using`


class using:
    """`with using(tower, places):` lets the tower's layers attend through `attend`. For one row of tokens."""

    def __init__(self, tower: Any, places: Places) -> None:
        self.config, self.places = tower.config, places

    def __enter__(self) -> None:
        self.places.seen = self.places.look()
        _places.append(self.places)
        self.before = vars(self.config)["_attn_implementation_internal"]
        vars(self.config)["_attn_implementation_internal"] = NAME

    def __exit__(self, *error: object) -> None:
        vars(self.config)["_attn_implementation_internal"] = self.before
        _places.pop()
        self.places.seen = None


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function of transformers' interface."""
    if attention_mask is not None or kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError(f"{type(module).__name__}: it attends with more than queries, keys and values.")
    return attend(query[0], key[0], value[0], _places[-1], scaling)[None], None


def register() -> None:
    """A name of ours, and no mask of that name: transformers then makes none."""
    AttentionInterface.register(NAME, attention)
