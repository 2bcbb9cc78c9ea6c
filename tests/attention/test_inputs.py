"""What a method can say with `AttentionInputs`: several branches over the same keys, each read at other positions."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from hf_longctx.attention.inputs import AttentionInputs
from hf_longctx.attention.method import AttentionMethod
from hf_longctx.cache import FullLayer, UnrotatedLayer
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.masks import Chunk, Window
from tests.tiny import left_padded, logits_of, text, tiny

SIZE, SPAN = 5, 12  # tokens of a chunk; the positions that the model is shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class DualChunk(AttentionMethod):
    """Dual chunk attention (An et al. 2024) by hand: keys at their place in a chunk, queries at one of three."""

    summary: ClassVar[str] = "three branches over the same keys"
    paper: ClassVar[str] = ""
    seen: ClassVar[list[list[Branch]]] = []

    def cache_layer(self, module: nn.Module) -> UnrotatedLayer:
        return FullLayer(self)

    def branches(self, inputs: AttentionInputs) -> list[Branch]:
        place = inputs.q_pos_BL % SIZE
        k_rope = inputs.memo("keys", lambda: inputs.rotation(inputs.keys.pos % SIZE))
        own, before, earlier = (
            inputs.memo(which, lambda pos=pos: inputs.rotation(pos))
            for which, pos in (
                ("own", place),
                ("before", (place + SIZE).clamp(max=SPAN - 1)),
                ("earlier", torch.full_like(place, SPAN - 1)),
            )
        )
        branches = [
            inputs.branch(Chunk(SIZE), inputs.keys, own, k_rope),
            inputs.branch(Chunk(SIZE, back=1), inputs.keys, before, k_rope),
            inputs.branch(Chunk(SIZE, back=2, earlier=True), inputs.keys, earlier, k_rope),
        ]
        self.seen.append(branches)
        return branches


DualChunk.name = "dual_chunk_by_hand"  # set here, so that the registry does not know it


def brute_force(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Each query alone, each key at its own distance; stands for eager attention over un-rotated q and k."""
    B, H, L, D = query.shape
    k, v = (x.repeat_interleave(H // x.shape[1], 1) for x in (key, value))
    config = module.config
    out = torch.zeros(B, L, H, D)
    for i in range(L):
        scores = []
        for j in range(i + 1):
            chunks = i // SIZE - j // SIZE
            at = (i % SIZE, min(i % SIZE + SIZE, SPAN - 1), SPAN - 1)[min(chunks, 2)]
            angle = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, D, 2) / D)

            def read(x: Tensor, pos: int, angle: Tensor = angle) -> Tensor:
                both = torch.cat([angle, angle])[None, None] * pos
                return apply_rotary_pos_emb(x, x, both.cos(), both.sin())[0]

            scores.append((read(query[:, :, i : i + 1], at) * read(k[:, :, j : j + 1], j % SIZE)).sum(-1)[..., 0])
        weights = (torch.stack(scores, -1) / math.sqrt(D)).softmax(-1)
        out[:, i] = torch.einsum("bhs,bhsd->bhd", weights, v[:, :, : i + 1])
    return out, None


@pytest.fixture
def brute(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stock model whose attention is `brute_force` over queries and keys that were never rotated."""
    from transformers.models.llama import modeling_llama

    model = tiny()
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: (q, k))
    monkeypatch.setattr(modeling_llama.ALL_ATTENTION_FUNCTIONS, "get_interface", lambda *a: brute_force)
    return model


def test_three_branches_over_the_same_keys_are_dual_chunk_attention(brute: Any) -> None:
    ids = text(2, 4 * SIZE + 3)
    expected = logits_of(brute, ids)
    ours = tiny()
    with pytest.MonkeyPatch.context() as undone:
        from transformers.models.llama import modeling_llama

        undone.setattr(modeling_llama, "apply_rotary_pos_emb", apply_rotary_pos_emb)
        undone.delattr(modeling_llama.ALL_ATTENTION_FUNCTIONS, "get_interface")
        DualChunk.seen.clear()
        with DualChunk().on(ours):
            DualChunk.seen.clear()
            torch.testing.assert_close(logits_of(ours, ids), expected, rtol=1e-4, atol=1e-4)
            (first, *_) = DualChunk.seen
            assert len({branch.k_BGSD.data_ptr() for branch in first}) == 1
            assert all(branch.positions.same_rows for branch in first)
            assert len({id(branch.positions.memo) for branch in first}) == 1
            cache = DynamicCache(config=ours.config)
            pieces = [ours(piece, past_key_values=cache, use_cache=True).logits for piece in ids.split([7, 1, 9, 6], 1)]
            torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-4, atol=1e-4)
            assert not DualChunk.seen[-1][0].positions.same_rows


def test_padding_is_no_position() -> None:
    rows = [text(1, n, seed=n)[0] for n in (23, 14)]
    ids, mask = left_padded(rows)
    with DualChunk().on(tiny()) as model:
        pos = (mask.cumsum(1) - 1).clamp(min=0)  # chunks begin where texts do
        together = logits_of(model, ids, attention_mask=mask, position_ids=pos)
        for i, row in enumerate(rows):
            torch.testing.assert_close(together[i, -len(row) :], logits_of(model, row[None])[0], rtol=1e-4, atol=1e-4)


def test_only_keys_that_all_layers_share_have_a_memo() -> None:
    """Those chosen by one layer stand at positions of their own."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Halves(DualChunk):
        def branches(self, inputs: AttentionInputs) -> list[Branch]:
            q_rope, k_rope = inputs.true_ropes()
            everything = inputs.branch(Window(100), inputs.keys, q_rope, k_rope)
            first = inputs.branch(Window(100), inputs.first(3), q_rope, k_rope)
            assert inputs.first(3) is inputs.first(3)
            assert first.positions.memo is inputs.branch(Window(100), inputs.first(3), None, None).positions.memo
            assert first.positions.memo is not None
            assert first.positions.memo is not everything.positions.memo
            chosen = inputs.branch(Window(100), inputs.keys.last(3, False), None, None)
            assert chosen.positions.memo is None
            assert not chosen.positions.same_rows
            return [everything]

    with Halves().on(tiny()) as model:
        model(text(1, 9))
