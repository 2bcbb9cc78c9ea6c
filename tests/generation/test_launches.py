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
lookup = CodeLookup(**window, top_k=3, shortlist=6)
counted = CodeLookup(**window, top_k=3, shortlist=6, gate="count")  # how many tokens were searched, besides
for method, forward, layer, batches in (
    (LMInfinite(**window), 2, 3, (1,)), (lookup, 3, 12, (1, 2)), (counted, 9, 12, (1,)),
):
    for batch in batches:
        once, each = split(method, batch)
        assert once.total() - stock.total() <= forward, listed(once)
        assert own(each).total() <= layer, listed(each)
"""

SAME = """
import torch
from transformers import DynamicCache
from hf_longctx import CodeLookup, LMInfinite, StreamingLLM
from tests.generation.launches import as_on_a_gpu
from tests.tiny import left_padded, logits_of, text, tiny

window = {"n_global": 2, "n_local": 16}
methods = (LMInfinite(**window), StreamingLLM(n_sink=2, window=16), LMInfinite(**window, top_k=3, top_k_from_layer=1),
           CodeLookup(**window, top_k=3, shortlist=16), CodeLookup(**window, top_k=3, shortlist=16, gate=None))
for family, chosen in (("llama", methods), ("gpt_neox", methods[:2]), ("smollm3", methods[3:4])):
    model, (ids, mask) = tiny(family), left_padded([text(1, n, seed=n)[0] for n in (43, 30)])
    pos = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)
    for method in chosen:
        with method.on(model):
            truth, cache, ours = logits_of(model, ids, attention_mask=mask, use_cache=False)[:, 40:], DynamicCache(), []
            with as_on_a_gpu():
                for start, stop in ((0, 40), (40, 41), (41, 42), (42, 43)):
                    given = {"attention_mask": mask[:, :stop], "position_ids": pos[:, start:stop]}
                    ours.append(logits_of(model, ids[:, start:stop], past_key_values=cache, **given))
        torch.testing.assert_close(torch.cat(ours[1:], 1), truth, atol=5e-5, rtol=1e-5)
"""


def test_a_step_launches_few_kernels() -> None:
    run(COUNTED, "1")


def test_what_it_launches_gives_what_torch_gives_for_the_whole_text() -> None:
    run(SAME, "1")
