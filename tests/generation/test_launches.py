"""How many kernels a decoding step launches: a bound for what is once a forward, and for what every layer adds."""

from __future__ import annotations

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

COUNTED = """
from hf_longctx import CodeLookup, LMInfinite
from tests.generation.launches import listed, own, split

stock, _ = split(None)
window = {"n_global": 2, "n_local": 16}
# once a forward: the ring's token and the window's angles; with look-ups, where the first tokens end.
# a layer: the token is written, attention, its parts are merged; with look-ups, eight of a choice and the found ones
for method, forward, layer in ((LMInfinite(**window), 2, 3), (CodeLookup(**window, top_k=3, shortlist=6), 3, 13)):
    for batch in (1, 2):
        once, each = split(method, batch)
        assert once.total() - stock.total() <= forward, listed(once)
        assert own(each).total() <= layer, listed(each)
"""

SAME = """
import torch
from transformers import DynamicCache
from hf_longctx import CodeLookup, LMInfinite, StreamingLLM
from tests.generation.launches import as_on_a_gpu
from tests.tiny import logits_of, text, tiny

window = {"n_global": 2, "n_local": 16}
for family in ("llama", "gpt_neox", "smollm3"):
    model, ids = tiny(family), text(2, 60)
    for method in (LMInfinite(**window), StreamingLLM(n_sink=2, window=16),
                   LMInfinite(**window, top_k=3, top_k_from_layer=1), CodeLookup(**window, top_k=3, shortlist=64),
                   CodeLookup(**window, top_k=3, shortlist=64, gate=None)):
        with method.on(model):
            truth, cache = logits_of(model, ids, use_cache=False)[:, 50:], DynamicCache()
            with as_on_a_gpu():
                logits_of(model, ids[:, :50], past_key_values=cache)
                ours = [logits_of(model, ids[:, t : t + 1], past_key_values=cache) for t in range(50, 60)]
        torch.testing.assert_close(torch.cat(ours, 1), truth, atol=5e-5, rtol=1e-5)
"""


def test_a_step_launches_few_kernels() -> None:
    run(COUNTED, "1")


def test_what_it_launches_gives_what_torch_gives_for_the_whole_text() -> None:
    run(SAME, "1")
