"""The decoding kernel against the pair-by-pair definition, and decoding from a CUDA graph against eager decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as partial
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as halves

from hf_longctx import LMInfinite, StreamingLLM
from hf_longctx.generation.cuda_graph import can_replay, graph_forward
from hf_longctx.ops.attend import attend
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.kernels import FUSED
from hf_longctx.ops.layout import rotary_layout
from hf_longctx.ops.masks import BeyondWindow, Window
from hf_longctx.ops.positions import Positions
from hf_longctx.ops.rotation import Rotation
from tests.tiny import left_padded, text, tiny

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # of the whole tensor's norm
METHODS = {"lm_infinite": LMInfinite(n_global=4, n_local=24), "streaming_llm": StreamingLLM(n_sink=4, window=24)}


def rotation(pos: torch.Tensor, dim: int, apply: Any, dtype: torch.dtype) -> Rotation:
    angle = pos.clamp(min=0)[..., None].double() * 10000 ** (-torch.arange(0, dim, 2, device=pos.device) / dim)
    both = torch.cat([angle, angle], -1)
    return Rotation(both.cos().to(dtype), both.sin().to(dtype), apply)


# every dim and every grouping, not their product: each pair is a kernel to compile
SHAPES = [
    ((3, 3), 64, 64),
    ((9, 3), 64, 64),
    ((8, 2), 96, 96),
    ((8, 1), 128, 128),
    ((8, 2), 256, 256),
    ((4, 4), 64, 16),
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("heads", "dim", "rotary"), SHAPES, ids=lambda x: str(x))
@pytest.mark.parametrize(("batch", "keys"), [(1, 1), (1, 4099), (3, 700)])
def test_kernel(dtype: Any, heads: tuple[int, int], dim: int, rotary: int, batch: int, keys: int) -> None:
    """Columns in any order, some of them empty; a second branch with rotations of its own."""
    (H, G), device = heads, torch.device("cuda")
    q = torch.randn(batch, H, 1, dim, device=device, dtype=dtype)
    k, v = torch.randn(2, batch, G, keys, dim, device=device, dtype=dtype).unbind()
    k_pos = torch.randperm(keys, device=device).expand(batch, -1).clone()
    k_pos[-1, ::5] = -1
    q_pos = torch.full((batch, 1), keys, device=device)
    apply = rotary_layout(halves if rotary == dim else partial)
    ropes = rotation(q_pos, rotary, apply, dtype), rotation(k_pos, rotary, apply, dtype)
    far = rotation(torch.full((1, 1), 50, device=device), rotary, apply, dtype)
    size = max(keys // 2, 1)
    few = min(keys, 7)
    branches = [
        Branch(q, k, v, Positions(q_pos, k_pos), Window(size), *ropes),
        Branch(q, k[:, :, :few], v[:, :, :few], Positions(q_pos, k_pos[:, :few]), BeyondWindow(size), None, far),
    ]
    assert FUSED[0].unsupported_reason(branches) is None
    with torch.no_grad():
        ours = attend(branches, scale=dim**-0.5)
        truth = attend([_double(b) for b in branches], scale=dim**-0.5, kernel="reference")
    assert ours.dtype == dtype
    off = (ours.double() - truth).norm() / truth.norm().clamp(min=1e-9)
    assert off <= TOLERANCE[dtype], float(off)


def _double(branch: Branch) -> Branch:
    turn = [
        None if r is None else Rotation(r.cos.double(), r.sin.double(), r.layout)
        for r in (branch.q_rope, branch.k_rope)
    ]
    three = branch.q_BHLD.double(), branch.k_BGSD.double(), branch.v_BGSD.double()
    return Branch(*three, branch.positions, branch.mask, *turn)


def test_a_row_without_keys_gets_zeros() -> None:
    q, k = torch.randn(2, 2, 1, 64, device="cuda"), torch.randn(2, 1, 80, 64, device="cuda")
    pos = torch.arange(80, device="cuda").expand(2, -1).clone()
    pos[1] = -1
    positions = Positions(torch.full((2, 1), 90, device="cuda"), pos)
    out = attend([Branch(q, k, k, positions, BeyondWindow(0))], scale=0.1)
    assert out[0].abs().sum() > 0
    assert (out[1] == 0).all()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "smollm3"])
def test_generation_from_a_graph_gives_eagers_tokens(method: Any, family: str) -> None:
    model = tiny(family).cuda()
    rows = [text(1, n, seed=n)[0] for n in (70, 9, 33, 41)]
    ids, mask = (t.cuda() for t in left_padded(rows))
    more = text(4, 6, seed=3).cuda()
    with method.on(model):
        cache = DynamicCache(config=model.config)
        model.generate(ids, attention_mask=mask, max_new_tokens=2, past_key_values=cache)
        assert can_replay(model, cache)
        both = []
        for off in (False, True):
            settings = {
                "max_new_tokens": 60,
                "do_sample": False,
                "disable_compile": off,
                "return_dict_in_generate": True,
            }
            first = model.generate(ids, attention_mask=mask, output_logits=True, **settings)
            turn = torch.cat([first.sequences, more], 1)
            turn_mask = torch.cat([mask, mask.new_ones(4, turn.shape[1] - mask.shape[1])], 1)
            second = model.generate(turn, attention_mask=turn_mask, past_key_values=first.past_key_values, **settings)
            both.append((first, second.sequences))
        alone = [model.generate(row[None].cuda(), max_new_tokens=60, do_sample=False)[0, len(row) :] for row in rows]
    (graph, graph_second), (eager, eager_second) = both
    assert torch.equal(graph.sequences, eager.sequences)
    assert torch.equal(graph_second, eager_second)
    torch.testing.assert_close(torch.stack(graph.logits), torch.stack(eager.logits), atol=1e-4, rtol=1e-4)
    for row, tokens in enumerate(alone):
        assert torch.equal(graph.sequences[row, ids.shape[1] :], tokens)


def test_a_graph_is_recorded_once_a_call_and_sampling_streams_and_beams_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_longctx.generation import cuda_graph as graphs

    recorded: list[Any] = []
    record = graphs._record
    monkeypatch.setattr(graphs, "_record", lambda *a: (recorded.append(1), record(*a))[1])
    model, ids = tiny().cuda(), text(2, 30).cuda()
    with METHODS["lm_infinite"].on(model):
        model.generate(ids, max_new_tokens=20, do_sample=True)
        assert len(recorded) == 1
        model.generate(ids, max_new_tokens=20, do_sample=False, disable_compile=True)
        model.generate(ids, max_new_tokens=8, num_beams=3, do_sample=False)
        assert len(recorded) == 1
        truth = model.generate(ids, max_new_tokens=20, do_sample=False, disable_compile=True)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(1.5)  # a graph reads weights, it does not hold them
        changed = model.generate(ids, max_new_tokens=20, do_sample=False)
        assert not torch.equal(changed, truth)
        assert torch.equal(changed, model.generate(ids, max_new_tokens=20, do_sample=False, disable_compile=True))


def test_a_model_that_synchronises_goes_on_without_a_graph(caplog: pytest.LogCaptureFixture) -> None:
    model, ids = tiny().cuda(), text(1, 30).cuda()
    norm: Any = model.model.norm
    stock = type(norm).forward
    with METHODS["lm_infinite"].on(model):
        truth = model.generate(ids, max_new_tokens=12, do_sample=False)
        try:
            type(norm).forward = lambda self, x: stock(self, x) * float(x.new_ones(()).item())
            ours = model.generate(ids, max_new_tokens=12, do_sample=False)
        finally:
            type(norm).forward = stock
    assert torch.equal(ours, truth)
    assert "without a CUDA graph" in caplog.text
    assert torch.randn(3, device="cuda").isfinite().all(), "a capture that broke off must not keep the generator"


def test_other_forwards_pass_through() -> None:
    model, ids = tiny().cuda(), text(1, 30).cuda()
    with METHODS["lm_infinite"].on(model), torch.no_grad():
        step = graph_forward(model)
        assert torch.equal(step(input_ids=ids, use_cache=False).logits, model(ids, use_cache=False).logits)
        cache = DynamicCache(config=model.config)
        step(input_ids=ids, past_key_values=cache)
        for _ in range(4):
            out = step(input_ids=ids[:, :1], past_key_values=cache, output_hidden_states=True)
            assert out.hidden_states is not None
