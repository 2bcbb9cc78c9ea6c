"""What is known of packed rows, who needs to know it, and which kernel is chosen for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_longctx.ops.kernels import FUSED, KERNELS, Call, blocked, choose, cudnn, runs
from hf_longctx.ops.kernels.base import takes
from hf_longctx.ops.kernels.check import check_kernel
from hf_longctx.ops.kernels.reference import Reference
from hf_longctx.ops.masks import DOCUMENT, BeyondWindow, Causal, Full, Mask, Packed, Window
from hf_longctx.ops.positions import Positions
from hf_longctx.ops.segments import segments, segments_of
from tests.ops.cases import SEES
from tests.ops.packs import INSIDE, PACKS, codes, known, packed

K = 1024


@pytest.mark.parametrize("pack", PACKS)
def test_runs_are_found_in_positions(pack: str) -> None:
    found = segments_of(*codes(PACKS[pack]))
    assert found is not None
    assert found.lengths == tuple(PACKS[pack])
    same = segments(PACKS[pack], "cpu")
    for mine in (found, same):
        assert mine.cu_q_N.dtype == mine.cu_k_N.dtype == torch.int32
        assert mine.cu_q_N.diff().tolist() == [queries for queries, _ in PACKS[pack]]
        assert mine.cu_k_N.diff().tolist() == [keys for _, keys in PACKS[pack]]
        assert mine.longest_q == max(queries for queries, _ in PACKS[pack])
        assert mine.longest_k == max(keys for _, keys in PACKS[pack])


def test_no_rows_are_no_runs() -> None:
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    found = segments_of(nothing, nothing)
    assert found is not None
    assert (found.lengths, found.longest_q, found.cu_q_N.tolist()) == ((), 0, [0])


def test_zigzag_rows_are_a_run_and_shifted_ones_are_none() -> None:
    zigzag = torch.tensor([[0, 1, 8, 9, DOCUMENT, DOCUMENT + 1]])
    found = segments_of(zigzag, zigzag)
    assert found is not None
    assert found.lengths == ((4, 4), (2, 2))
    assert segments_of(zigzag[:, 2:4], zigzag[:, :4]) is not None  # what is after a cache
    later = zigzag[:, :4]
    wrong: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
        "keys after the last query": (later[:, :2], later),
        "queries after the last key": (later, later[:, :2]),
        "another order": (later.flip(1), later),
        "the same position twice": (later, torch.tensor([[0, 1, 8, 8]])),
        "documents that come back": (torch.tensor([[0, DOCUMENT, 1]]),) * 2,
        "padding": (torch.tensor([[-1, 0, 1]]),) * 2,
        "two rows": (later.expand(2, -1),) * 2,
    }
    for what, (q_pos, k_pos) in wrong.items():
        assert segments_of(q_pos, k_pos) is None, what


@pytest.mark.parametrize("name", ["cuda_flash", "flash_attn", "cudnn", "triton_window", "triton_few", "selected"])
def test_what_kernels_refuse(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, by the name of what is missing."""
    from hf_longctx.ops.kernels import base, flash_attn

    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(base, "TRITON", True)
    monkeypatch.setattr(flash_attn, "FLASH_ATTN_LACKS", None)
    monkeypatch.setattr(flash_attn, "checked_kernel", lambda *given: None)
    kernel = KERNELS[name]
    monkeypatch.setattr(type(kernel), "device", None)
    p = packed(PACKS["one-document"], dtype=torch.bfloat16)
    call = Call(known(p, PACKS["one-document"]), Packed(Window(5)), 1.0)
    unknown = replace(call, positions=Positions(p.q_pos, p.k_pos, consecutive=True, padded=False))

    def reason(call: Call, q: Any = p.q) -> str | None:
        return kernel.unsupported_reason(call, q, p.k)

    if name in ("triton_few", "selected"):
        assert reason(call) == "it has no Packed mask"
        return
    assert (
        reason(replace(call, mask=Packed(BeyondWindow(5)))) == "it has no BeyondWindow mask inside of packed documents"
    )
    if name == "cudnn":
        assert reason(call) == "it has no Window mask inside of packed documents"
        call, unknown = (replace(x, mask=Packed(Causal())) for x in (call, unknown))
        single = replace(call, positions=replace(call.positions, segments=segments([(36, 36), (1, 1)], "cpu")))
        assert reason(single) == "a run of rows has a single query or key, which flash attention does better"
    assert reason(call) is None
    without = "it takes packed documents by their segments only, and Positions has none (see segments_of)"
    assert reason(unknown) == without
    assert reason(call, p.q.expand(2, -1, -1, -1)) == "segments are those of one row, and the batch has 2"
    with pytest.raises(ValueError, match=f"kernel='{name}' cannot do this attention: it takes packed"):
        choose(unknown, p.q, p.k, name)


def test_decoding_refuses_documents_by_name() -> None:
    assert not any(takes(fused.masks, Packed()) for fused in FUSED)


def chosen(lengths: list[tuple[int, int]], inside: Mask, monkeypatch: pytest.MonkeyPatch, known: bool = True) -> str:
    """The kernel for such documents in bfloat16 on a GPU; none is there, so nothing runs."""
    from hf_longctx.ops.kernels import base

    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(base, "TRITON", True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        L, S = (sum(run[side] for run in lengths) for side in (0, 1))
        q, k = (torch.empty(1, n, m, 64, device="cuda", dtype=torch.bfloat16) for n, m in ((32, L), (8, S)))
        q_pos, k_pos = (torch.empty(1, m, device="cuda", dtype=torch.int64) for m in (L, S))
        rows = segments(lengths, "cpu") if known else None
        call = Call(Positions(q_pos, k_pos, consecutive=True, segments=rows), Packed(inside), 0.1)
        return choose(call, q, k).name


def test_the_fastest_kernel_is_chosen_by_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_(lengths: list[tuple[int, int]], inside: Mask = Causal(), known: bool = True) -> str:  # noqa: B008
        return chosen(lengths, inside, monkeypatch, known)

    assert is_([(6 * K, 6 * K)] * 10) == "cudnn"
    assert is_([(8 * K, 8 * K), (8 * K, 32 * K)]) == "cudnn"  # a rank of two under zigzag
    assert is_([(8 * K, 8 * K)] * 4, Full()) == "cudnn"
    assert is_([(n * K, n * K) for n in range(2, 12)]) == "cuda_flash", "a graph of cuDNN for each length"
    assert is_([(2 * K, 2 * K)] * 10) == "cuda_flash"
    assert is_([(2 * K, 2 * K), (2 * K, 8 * K)]) == "cuda_flash"  # a rank of two under zigzag of 8k
    assert is_([(6 * K, 6 * K), (1, 1)]) == "cuda_flash"
    assert is_([(6 * K, 6 * K)] * 10, Window(K)) == "triton_window"
    assert is_([(K, K)] * 10, Window(K)) == "cuda_flash"
    assert is_([(6 * K, 6 * K)] * 10, known=False) == "blocked"


def test_one_document_under_zigzag_needs_no_more_graphs_than_are_allowed() -> None:
    """Quarters of an odd length, on two ranks."""
    cuts = [0, 35, 70, 106, 141]
    pieces = [[(b - a, b) for a, b in (cuts[i : i + 2], cuts[j : j + 2])] for i, j in ((0, 3), (1, 2))]
    for lengths in pieces:
        p = packed(lengths)
        assert len(runs.sizes(Call(known(p, lengths), Packed(), 1.0))) <= cudnn.FEW


@pytest.mark.parametrize("inside", ["causal", "short-window", "full"])
def test_blocks_skip_what_other_documents_hold(inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither keys before the documents of a block of queries nor keys after them, forward and backward."""
    monkeypatch.setattr(blocked, "BLOCK", 8)
    lengths = [(40, 40), (16, 16), (3, 3), (5, 5), (40, 40)]
    p = packed(lengths)
    mask = Packed(INSIDE[inside])
    call = Call(Positions(p.q_pos, p.k_pos), mask, 0.4)
    touched = {"_forward": [], "_gradients": []}  # type: ignore[var-annotated]
    for name, seen in touched.items():
        plain = getattr(blocked, name)

        def watched(call: Call, block: Any, *args: Any, seen: Any = seen, plain: Any = plain) -> Any:
            seen.append((block.rows, block.columns))
            return plain(call, block, *args)

        monkeypatch.setattr(blocked, name, watched)
    out, lse = KERNELS["blocked"].forward(call, p.q, p.k, p.v)
    KERNELS["blocked"].gradients(call, p.grad, p.q, p.k, p.v, out, lse)
    pairs = SEES[Packed](mask, p.q_pos[0][:, None], p.k_pos[0][None])
    for seen in touched.values():
        assert len(seen) == 13
        for rows, columns in seen:
            needed = pairs[rows].any(0).nonzero()
            # a block with the end of a document and the beginning of another spans both, and nothing beyond them
            documents = p.q_pos[0, rows] // DOCUMENT
            same = ((p.k_pos[0] // DOCUMENT >= documents[0]) & (p.k_pos[0] // DOCUMENT <= documents[-1])).nonzero()
            assert int(same[0]) <= columns.start <= int(needed[0])
            assert int(needed[-1]) < columns.stop <= int(same[-1]) + 1
            if len(documents.unique()) == 1:
                assert (columns.start, columns.stop) == (int(needed[0]), int(needed[-1]) + 1)


def test_the_check_on_first_use_has_documents() -> None:
    class OneDocument(Reference):
        """A window over all rows: right without documents."""

        def forward(self, call: Call, *qkv: Any) -> Any:
            if isinstance(call.mask, Packed):
                row = torch.arange(64)[None]
                call = replace(call, mask=call.mask.inside, positions=Positions(row[:, -37:], row))
            return super().forward(call, *qkv)

    kind = torch.device("cpu"), torch.float32, 16
    for packed_ in (False, True):
        assert check_kernel(Reference(), *kind, packed=packed_) is None
    assert check_kernel(OneDocument(), *kind) is None
    assert "its output is off by" in str(check_kernel(OneDocument(), *kind, packed=True))


WAITLESS = [("cuda_flash", inside) for inside in INSIDE] + [("cudnn", "causal"), ("cudnn", "full")]


@pytest.mark.parametrize(("name", "inside"), WAITLESS, ids=map("-".join, WAITLESS))
def test_no_number_is_read_on_the_host(name: str, inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values: torch's own shapes of its ops, and an error where the host asks for a number."""
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    lengths, kernel = [(33, 200), (0, 4), (170, 170), (20, 151)], KERNELS[name]

    def empty(*shape: int, dtype: Any = torch.bfloat16) -> torch.Tensor:
        return torch.empty(*shape, device="meta", dtype=dtype)

    L, S = (sum(run[side] for run in lengths) for side in (0, 1))
    q, k, v, grad = empty(1, 9, L, 64), empty(1, 3, S, 64), empty(1, 3, S, 64), empty(1, L, 9, 64)
    q_pos, k_pos = (empty(1, n, dtype=torch.int64) for n in (L, S))
    positions = Positions(q_pos, k_pos, consecutive=True, segments=segments(lengths, "meta"))
    call = Call(positions, Packed(INSIDE[inside]), 0.1)
    assert kernel.limits(call, q, k) is None
    out, lse = kernel.forward(call, q, k, v)
    assert (out.shape, lse.shape) == ((1, L, 9, 64), (1, 9, L))
    into = [torch.empty_like(x, dtype=torch.float32) for x in (q, k, v)]
    found = kernel.backward(call, grad, q, k, v, out, lse, into=into)
    assert all(x is y for x, y in zip(found, into, strict=True))
    if name == "cuda_flash":
        unknown = Call(Positions(q_pos, k_pos, same_rows=True), Causal(), 0.1)
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            kernel.forward(unknown, q, k, v)
