"""The best tokens of those that have reached a bound, without a GPU: beside a sort of each row. Needs triton."""

from __future__ import annotations

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

TOKENS = """
import torch
import triton
import triton.language as tl
from hf_longctx.ops.kernels import triton_tokens
from hf_longctx.ops.kernels.triton_range import COUNTS, STATE, begin, begun, binned
from hf_longctx.ops.kernels.triton_tokens import _tokens

@triton.jit
def tallied(tally, scores, numbers, ends, room, N: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, N)
    begin(tally + row * STATE, tl.load(ends + 2 * row), tl.load(ends + 2 * row + 1))
    low, high = begun(tally + row * STATE)
    bin = binned(tl.load(scores + row * room + at, at < room, 0.0), low, high)
    tl.atomic_add(tally + row * STATE + COUNTS + bin, 1, (at < tl.load(numbers + row)) & (bin > 0))

inf, n = float("inf"), 2500
torch.manual_seed(0)
random, usual = torch.randn(3, n), triton_tokens.FEW
kinds = {
    "random": random, "close": random * 1e-6 - 1.0, "equal": torch.full((3, n), -2.0), "wide": random.exp().pow(9),
    "ties": torch.randint(0, 3, (3, n)).float(), "two scores": (random > 1.0).float(),
    # most of them are in the first bin, and in one bin of the middle
    "outlier": torch.cat([random[:, 1:], torch.full((3, 1), 1e6)], 1),
    "crowd": torch.where(random > 0, 0.5 + 1e-7 * torch.randint(0, 5, (3, n)), random),
}
for some in (usual, tl.constexpr(8)):
    triton_tokens.FEW = some
    for what, scores in kinds.items():
        for k, numbers, chunk in ((20, [300, 20, 0], 512), (300, [2500, 300, 301], 4096), (700, [2500, 1, 1600], 512),
                                  (1, [2500, 512, 513], 512), (100, [600, 99, 101], 512),
                                  (2499, [2500, 2499, 2498], 4096)):
            slots = torch.stack([torch.randperm(n) for _ in range(3)]).int()
            # the bound is a little below the least, or there is none; the highest is known but for its last bit
            low = scores.amin(1) - 1e-3
            low[1] = -inf if k == 20 else low[1]
            high = scores.amax(1) * (1 - 1e-7)
            ends = torch.stack([torch.where(low > -inf, low, scores.median(1).values), high], 1).contiguous()
            tally, numbers_of = torch.full((3, STATE.value), 7).int(), torch.tensor(numbers).int()
            tallied[(3,)](tally, scores, numbers_of, ends, n, N=4096)
            kept, count = torch.full((3, k), -1).int(), torch.full((3,), -1).int()
            keys = torch.full((3, some.value), 2**62)
            _tokens[(triton.cdiv(n, chunk), 3)](
                scores, slots, numbers_of, tally, kept, count, keys, n, n, KEPT=k, CHUNK=chunk)
            for row, number in enumerate(numbers):
                at = zip(scores[row, :number].tolist(), slots[row, :number].tolist())
                right = [slot for _, slot in sorted((-score, slot) for score, slot in at)[:k]]
                assert count[row] == len(right), (what, k, number)
                assert sorted(kept[row, : len(right)].tolist()) == sorted(right), (what, k, number, some.value)
                assert (kept[row, len(right) :] == -1).all()
"""


def test_the_best_tokens_are_those_of_a_sort_and_of_equal_ones_the_lower_slots() -> None:
    run(TOKENS, "1")
