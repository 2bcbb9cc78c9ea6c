"""The window attended to beside a search, on a second stream of a recorded CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx.ops.found_tokens import FoundTokens
from hf_longctx.ops.kernels import bits, side_stream
from tests.ops.lookups import Lookup

pytestmark = pytest.mark.gpu

LAYERS, NEAR, SHORTLIST, TOP = 6, 4000, 64, 8


def layers(dtype: torch.dtype) -> list[Lookup]:
    """Of two rows each, with windows that keep the card busy for a while."""
    return [Lookup.of(32, 8, 128, 20_000, 1, NEAR, dtype, "cuda", seed=i, more=1) for i in range(LAYERS)]


def step_of(lookup: Lookup, margin: float | None = 0.0) -> Callable[[], Tensor]:
    """The attention of a layer to its window, to the first tokens and to what it finds."""
    from hf_longctx.ops.kernels.triton_decode import Keys
    from hf_longctx.ops.kernels.triton_found import decode
    from hf_longctx.ops.kernels.triton_lookup import choose

    q, settings = lookup.q[:, :, 0], {"k": TOP, "per": "group", "shortlist": SHORTLIST, **lookup.settings}
    settings["by_bits"] = bits.unsupported_reason(lookup.q, lookup.pages, "group") is None
    window, first = (
        Keys(lookup.k[:, :, x], lookup.v[:, :, x], lookup.pos[:, x], None, None, 0, 2**62)
        for x in (slice(-NEAR, None), slice(4))
    )

    def find() -> FoundTokens:
        table = choose(lookup.q, lookup.q_pos, lookup.pages, **settings)
        return FoundTokens(q, table[:, :, 0], lookup.pages, margin)

    return lambda: decode(q, window, [first], find, lookup.q_pos[:, 0], 0, q.shape[-1] ** -0.5)[0]


def counted(patch: pytest.MonkeyPatch) -> list[Any]:
    """A list that gets the second stream whenever it is asked for."""
    asked, side = [], side_stream._side

    def noted(device: torch.device) -> Any:
        asked.append(side(device))
        return asked[-1]

    patch.setattr(side_stream, "_side", noted)
    return asked


@pytest.mark.parametrize("margin", [0.0, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_replayed_steps_are_the_eager_ones(
    dtype: torch.dtype, margin: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers in one graph, whose memory goes from one to the next, for many tokens."""
    held = layers(dtype)
    steps = [step_of(lookup, margin) for lookup in held]
    asked = counted(monkeypatch)
    for step in steps:
        step()  # compiled
    assert not asked, "outside of graphs all is on one stream"
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [step() for step in steps]
    assert len(asked) == LAYERS
    assert len(set(asked)) == 1, "one second stream"
    random = torch.Generator().manual_seed(7)
    for token in range(20):
        for lookup in held:
            lookup.q.copy_(torch.randn(lookup.q.shape, generator=random))
        for _ in range(5):  # at once after each other, as tokens are
            graph.replay()
        replayed = [output.clone() for output in outputs]
        for layer, (one, step) in enumerate(zip(replayed, steps, strict=True)):
            # found tokens may stand in another order in the table, and sums are rounded otherwise
            close = {"rtol": 2e-2, "atol": 2e-3} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(one, step(), **close, msg=lambda m, at=(token, layer): f"{at}: {m}")
    assert len(asked) == LAYERS, "neither replays nor eager steps ask for it again"


def test_no_kernel_runs_on_another_stream_outside_of_graphs() -> None:
    step = step_of(layers(torch.bfloat16)[0])
    step()
    torch.cuda.synchronize()
    side = side_stream._side(torch.device("cuda", torch.cuda.current_device()))
    with torch.cuda.stream(side):
        torch.cuda._sleep(10**9)  # about half a second
    step()
    torch.cuda.current_stream().synchronize()
    assert not side.query(), "a step that waited for the second stream would have waited for this"
    side.synchronize()


def test_a_graph_ends_where_a_search_fails() -> None:
    from hf_longctx.ops.kernels.triton_decode import Keys
    from hf_longctx.ops.kernels.triton_found import decode

    lookup = layers(torch.bfloat16)[0]
    window = Keys(lookup.k[:, :, -NEAR:], lookup.v[:, :, -NEAR:], lookup.pos[:, -NEAR:], None, None, 0, 2**62)

    def find() -> FoundTokens:
        raise ValueError("nothing to be found")

    step = step_of(lookup)
    right = step()
    with pytest.raises(ValueError, match="nothing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        decode(lookup.q[:, :, 0], window, [], find, lookup.q_pos[:, 0], 0, 0.1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # the second stream is free again
        out = step()
    graph.replay()
    torch.testing.assert_close(out, right, rtol=2e-2, atol=2e-3)
