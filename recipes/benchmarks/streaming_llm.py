"""StreamingLLM at 64 times its window, beside the stock model inside that window, in one run.

python -m recipes.benchmarks.documents DOCS        # fetches the texts
python -m recipes.benchmarks.streaming_llm --documents DOCS
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

from torch import Tensor

from hf_longctx import StreamingLLM
from hf_longctx.evaluation.perplexity import fixed_targets
from hf_longctx.evaluation.rows import row

from .reading import K, arguments, cache_bytes, finish, nll_detail, ratios, spans, subject
from .timing import peak_gib

TIMES = 64


def far_beyond(model: Any, documents: dict[str, Tensor], cache: int, n_targets: int) -> Iterator[dict[str, Any]]:
    """Perplexity of the same last tokens, 64 caches into a text, over that of the stock model with one cache of it."""
    texts = spans(documents, TIMES * cache, most=2)
    stock = fixed_targets(model, list(texts.values()), [cache], n_targets=n_targets)[0]
    method = StreamingLLM(n_sink=4, window=cache - 4)
    with method.on(model):
        ours = fixed_targets(model, list(texts.values()), [TIMES * cache], n_targets=n_targets, chunk=32 * K)[0]
        ids = next(iter(texts.values()))
        sizes = [cache_bytes(model, ids[: n * cache], chunk=4 * cache) for n in (8, TIMES)]
        peaks = [peak_gib(lambda n=n: cache_bytes(model, ids[: n * cache], chunk=4 * cache)) for n in (8, TIMES)]
    each = ratios(texts, ours.nll, stock.nll)
    what = f"after {TIMES * cache:,} tokens, a cache of {cache:,}, {len(texts)} documents"
    beside = {"perplexity": ours.perplexity, "stock inside the window": stock.perplexity}
    yield row(what, fmean(each.values()), "", bar="<= 1.10", beside=beside, detail=nll_detail(texts, ours, stock))
    for name, (early, late), bar in (("KV bytes", sizes, "== 1"), ("peak memory", peaks, "<= 1.02")):
        what = f"{name} after {TIMES * cache:,} tokens over that after {8 * cache:,}"
        yield row(what, late / early, "", bar=bar, detail={"early": early, "late": late})


def main() -> None:
    """Run it and write the result file."""
    parser = arguments(__doc__)
    args = parser.parse_args()
    if not args.documents:
        parser.error("it reads texts: python -m recipes.benchmarks.documents DIR, then --documents DIR")
    model, _, documents = subject(args)

    def rows() -> Iterator[dict[str, Any]]:
        yield from far_beyond(model, documents, 1 * K, 512)
        yield from far_beyond(model, documents, 8 * K, 1024)

    finish(model, rows(), args, "streaming_llm")


if __name__ == "__main__":
    main()
