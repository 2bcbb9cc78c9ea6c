"""How many of a query's best keys are among the best by their codes, of one bit a channel and of as many as there are.

    python -m recipes.benchmarks.code_bits --documents DOCS --tokens 32k    # on a CPU too: about ten minutes on 2 cores
    python -m recipes.benchmarks.code_bits --tiny

A text with facts is read by the window alone, and the last token of each question about them looks up in every layer.
What is compared is a choice: no reader is taught, and no answer is scored.
"""

# G key/value heads, R query heads of a group, L queries, S keys, D head dim
from __future__ import annotations

import argparse
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from hf_longctx import CodeLookup, stream
from hf_longctx.console.units import parse_tokens
from hf_longctx.evaluation.rows import row
from hf_longctx.hub import load
from hf_longctx.methods import code_lookup
from hf_longctx.ops.codes import Centre, channels, encode, levels, score

from .haystacks import Haystacks
from .reading import arguments, finish, rehearsal
from .retrieval.facts import KINDS, encoder, hide, questions

BEST, SHARES = 5, (1000, 250)  # keys of a query, and one in so many keys is in a shortlist
QUESTIONS, FIRST, WINDOW = 12, 16, 1024


@torch.no_grad()
def asked(model: Any, tokenizer: Any, texts: Haystacks, tokens: int, window: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Of every layer the queries of the questions, (G, R, L, D), and all keys, (G, S, D)."""
    rng, encode_text = random.Random(0), encoder(tokenizer)
    facts = questions([KINDS[n % 2] for n in range(QUESTIONS)], rng, taught=False)
    text_L = hide(texts.make(tokens, 11), facts, encode_text, rng, before=2 * window)
    words = [encode_text(f"\n{one.asked}") for one in facts]
    ends = torch.tensor([len(one) for one in words]).cumsum(0) - 1
    kept: list[tuple[Tensor, Tensor]] = []
    gated = code_lookup.gated

    def keep(found: Any, *given: Any) -> Any:
        stored = found.store.rows[0]
        q_GRLD = found.q_BHLD[0][:, ends].unflatten(0, (len(stored.k.pieces[0]), -1))
        kept.append((q_GRLD.float(), stored.k.cut(FIRST, len(text_L) - window).float()))
        return gated(found, *given)

    method = CodeLookup(n_global=FIRST, n_local=window, by="keys")
    with method.on(model), mock.patch.object(code_lookup, "gated", keep):
        reader = stream(model, text_L, chunk=min(4096, tokens), bounded=False, look_up=False)
        reader.read(torch.tensor([token for one in words for token in one]), look_up=True)
    yield from kept


def found(q_GRLD: Tensor, k_GSD: Tensor, sizes: Sequence[int]) -> dict[tuple[int, int], float]:
    """Of the best keys the share that is among so many best by codes of so many bits, by (bits, how many)."""
    best_GLK = torch.einsum("grld,gsd->grls", q_GRLD, k_GSD).amax(1).topk(BEST, -1).indices
    whole, shares = Centre.of(k_GSD[:, : code_lookup.MOST]), {}
    for bits in range(1, levels(k_GSD.shape[-1]) + 1):
        centre = Centre(whole.mean_GD, whole.width_GC[:, : bits * channels(k_GSD.shape[-1])])
        scores_GLS = score(q_GRLD, *encode(k_GSD, centre), centre).amax(1)
        for n in sizes:
            among_GLN = scores_GLS.topk(n, -1).indices
            shares[bits, n] = float((best_GLK[..., None] == among_GLN[..., None, :]).any(-1).float().mean())
    return shares


def measured(args: argparse.Namespace, device: str, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """A row for each size of a shortlist."""
    with tempfile.TemporaryDirectory() as folder:
        if args.tiny:
            args.model, args.documents = rehearsal(Path(folder))
            args.tokens = 2048
        model, tokenizer = load(args.model, dtype=dtype, device=device)
        texts, shares = Haystacks(tokenizer, args.documents), defaultdict[tuple[int, int], list[float]](list)
        window = 128 if args.tiny else WINDOW
        for q_GRLD, k_GSD in asked(model.eval(), tokenizer, texts, args.tokens, window):
            keys = k_GSD.shape[1]
            for name, share in found(q_GRLD, k_GSD, [-(-keys // part) for part in SHARES]).items():
                shares[name].append(share)
    bits = max(bits for bits, _ in shares)
    for (own, n), each in shares.items():
        if own == bits:
            what = f"{keys:,} keys: share of a query's {BEST} best among the best {n} by codes of {bits} bits a channel"
            beside = {} if bits == 1 else {"codes of 1 bit": fmean(shares[1, n])}
            yield row(what, fmean(each), "", beside=beside, detail={"layers": each})


def main(argv: list[str] | None = None) -> None:
    """Measure, and write the result file; a rehearsal writes it to a folder that is forgotten."""
    parser = arguments(__doc__)
    parser.add_argument("--tokens", type=parse_tokens, default=32768, help="of the text")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: a rehearsal")
    args = parser.parse_args(argv)
    if args.documents is None and not args.tiny:
        parser.error("--documents is needed: python -m recipes.benchmarks.documents DIR fetches some.")
    device = "cuda" if torch.cuda.is_available() and not args.tiny else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    found_on = SimpleNamespace(device=device, dtype=dtype)
    finish(found_on, measured(args, device, dtype), args, "code_bits", heading="share")


if __name__ == "__main__":
    main()
