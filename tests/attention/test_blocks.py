"""Looking blocks of tokens up: choices against loops, the block at the window's edge, and blocks of one token."""

# B rows, H query heads, G key/value heads, S keys, K blocks
from __future__ import annotations

import copy
from typing import Any

import pytest
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import InfLLM, LMInfinite, stream
from hf_longctx.attention.blocks import choose_blocks
from hf_longctx.attention.without import looking_up_from
from hf_longctx.cache import KeyValues
from tests.attention.far_keys import FIRST, NEAR, B, G, H, S, problem, sharing
from tests.contract.registry import close, differs
from tests.families.census.building import build
from tests.reference.lookup import best, block_score
from tests.reference.model import by_brute_force
from tests.tiny import left_padded, logits_in_parts, logits_of, text, tiny

SIZE, K = 4, 3


def by_loops(q: Tensor, keys: KeyValues, by: str, per: str) -> list[Any]:
    """The sets of slots for every row, table and query."""
    rows = []
    for b in range(B):
        real = (keys.pos[b] >= 0).nonzero()[:, 0].tolist()
        tables = []
        for some in sharing(per):
            k, chosen = keys.k[b, some[0] // 3, real].double(), {}
            for i, slot in enumerate(real):
                middle = list(range(FIRST, i - NEAR + 1))
                blocks = [middle[at : at + SIZE] for at in range(0, len(middle), SIZE)]
                edge = blocks.pop() if blocks and len(blocks[-1]) < SIZE else []
                queries = [q[b, h, slot].double() for h in some]
                scores = [(max(block_score(one, k[block], by) for one in queries), m) for m, block in enumerate(blocks)]
                found = edge + [j for m in best(scores, K) for j in blocks[m]]
                chosen[slot] = {real[j] for j in found}
            tables.append([chosen.get(i, set()) for i in range(S)])
        rows.append(tables)
    return rows


@pytest.mark.parametrize("per", ["group", "head"])
@pytest.mark.parametrize("by", ["mean", "bounds"])
@pytest.mark.parametrize("padded", [False, True])
def test_choices_are_those_of_loops(by: str, per: str, padded: bool) -> None:
    q, keys = problem(padded)
    after_B = keys.first(FIRST, padded).latest()
    table = choose_blocks(q, keys.pos, keys, k=K, size=SIZE, near=NEAR, after_B=after_B, by=by, per=per)
    assert table.shape == (B, G if per == "group" else H, S, K * SIZE + SIZE - 1)
    for slots in table.flatten(0, 2):
        real = slots[slots >= 0]
        assert len(real.unique()) == len(real), "no token counts twice"
    got = [[[set(slots) - {-1} for slots in one] for one in row] for row in table.tolist()]
    assert got == by_loops(q, keys, by, per)


def test_bounds_are_never_below_the_score_of_a_key_of_the_block() -> None:
    q, keys = problem(False)
    for block in keys.k[0, 0].double().split(SIZE):
        assert block_score(q[0, 0, 0].double(), block, "bounds") >= float((block @ q[0, 0, 0].double()).max())


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_blocks_of_one_token_are_lm_infinite_s_look_up(family: str) -> None:
    """For one token the mean and the bounds are its key."""
    model, (ids, mask) = tiny(family), left_padded([text(1, n, seed=n)[0] for n in (40, 23)])
    seen = {}
    for name, method in {
        "tokens": LMInfinite(n_global=2, n_local=6, top_k=3, top_k_from_layer=0),
        "mean": InfLLM(n_global=2, n_local=6, top_k=3, block_size=1, per="head"),
        "bounds": InfLLM(n_global=2, n_local=6, top_k=3, block_size=1, per="head", by="bounds"),
        "blocks": InfLLM(n_global=2, n_local=6, top_k=3, block_size=2, per="head"),
    }.items():
        with method.on(model):
            seen[name] = logits_of(model, ids, attention_mask=mask).masked_fill(~mask[..., None].bool(), 0)
    close(seen["mean"], seen["tokens"])
    close(seen["bounds"], seen["tokens"])
    differs(seen["blocks"], seen["tokens"])


def test_a_model_under_bounds_equals_loops() -> None:
    model, ids = tiny(), text(1, 26)
    method = InfLLM(n_global=1, n_local=6, top_k=1, block_size=4, by="bounds", per="head")
    with method.on(model):
        ours = logits_of(model, ids)
    with by_brute_force(model, method):
        close(ours, logits_of(model, ids))


def test_default_sizes_beyond_their_window() -> None:
    """In one layer, whose keys do not depend on what was looked up: a window of 4,096, and 17 blocks of 128."""
    model, ids = tiny(max_position_embeddings=8192, num_hidden_layers=1), text(1, 4800)
    with InfLLM().on(model):
        with looking_up_from(model, 4797):
            full = logits_of(model, ids, use_cache=False, logits_to_keep=3)
        reader = stream(model, ids[0, :-3], bounded=False, look_up=False)
        window = copy.deepcopy(reader)
        for token, wanted in zip(ids[0, -3:], full[0], strict=True):
            reader.read([int(token)])
            close(reader.logits, wanted)
        window.read(ids[0, -3:], look_up=False)
        differs(window.logits, reader.logits)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "falcon_h1", "deepseek_v2"])
def test_caps_sinks_recurrences_and_latent_attention(family: str) -> None:
    model, ids = build(family), text(2, 40, seed=3)
    stock = logits_of(model, ids)
    with InfLLM(n_global=2, n_local=7, top_k=2, block_size=4).on(model):
        full = logits_of(model, ids, use_cache=False)
        close(logits_in_parts(model, ids, (25, 26, 40), DynamicCache(config=model.config)), full)
    differs(full, stock)
