"""The comparison on first use: asked once, kept as long as its owner lives, and never passed by nan."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

from hf_longctx.ops.checked import KERNEL_TOLERANCE, by_itself, checked_once, disagreement, relative_error
from hf_longctx.ops.kernels.blocked import Blocked
from hf_longctx.ops.kernels.check import check_kernel
from hf_longctx.ops.kernels.reference import Reference


class Owner:
    pass


def test_it_is_asked_once_for_each_owner_and_key() -> None:
    asked: list[Any] = []
    one, two = Owner(), Owner()

    def check(what: Any) -> Any:
        return lambda: (asked.append(what), what)[1]

    for _ in range(2):
        assert checked_once(one, "a", check("a")) == "a"
        assert checked_once(one, "b", check(None)) is None
        assert checked_once(two, "a", check("other")) == "other"
    assert asked == ["a", None, "other"]


def test_an_error_is_not_kept() -> None:
    owner = Owner()

    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        checked_once(owner, 1, fails)
    assert checked_once(owner, 1, lambda: "yes") == "yes"


def test_owners_are_not_kept_alive() -> None:
    owner = Owner()
    there = weakref.ref(owner)
    checked_once(owner, 1, lambda: torch.zeros(3))
    del owner
    gc.collect()
    assert there() is None


def test_errors_are_relative_to_the_truth() -> None:
    truth = torch.tensor([3.0, 4.0])
    assert relative_error(truth, truth) == 0
    assert relative_error(truth * 1.1, truth) == pytest.approx(0.1, rel=1e-5)
    assert math.isnan(relative_error(torch.tensor([math.nan, 1]), truth))
    assert relative_error(truth, truth * 0) > 1e20


def test_what_is_wrong_is_named() -> None:
    truth = {"output": torch.ones(3), "lse": torch.ones(2)}
    assert disagreement(lambda: [torch.ones(3), torch.ones(2)], truth, torch.float32) is None
    wrong = disagreement(lambda: [torch.ones(3), torch.ones(2) * 1.5], truth, torch.float32)
    assert wrong == "its lse is off by 5.0e-01 (relative), more than 1e-05"
    assert "off by nan" in str(disagreement(lambda: [torch.ones(3) * math.nan, torch.ones(2)], truth, torch.float16))

    def broken() -> Any:
        raise RuntimeError("out of registers")

    assert disagreement(broken, truth, torch.float32) == "its check raised RuntimeError: out of registers"


@pytest.mark.parametrize("dtype", KERNEL_TOLERANCE, ids=str)
def test_the_check_of_a_kernel_passes_the_reference_and_no_other_window(dtype: Any) -> None:
    class OneKeyMore(Reference):
        def forward(self, call: Any, *qkv: Any) -> Any:
            out, lse = super().forward(call, *qkv)
            return out * 1.1, lse

    device = torch.device("cpu")
    assert check_kernel(Reference(), device, dtype, 16) is None
    assert "its output is off by" in str(check_kernel(OneKeyMore(), device, dtype, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_check_of_a_kernel_under_autocast_finds_what_it_finds_outside(dtype: Any) -> None:
    given = Blocked(), torch.device("cpu"), dtype, 32
    assert check_kernel(*given) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert check_kernel(*given) is None
        assert torch.is_autocast_enabled("cpu")


def test_a_check_by_itself_has_neither_autocast_nor_gradients() -> None:
    @by_itself
    def check(device: torch.device, dtype: torch.dtype) -> Any:
        x = torch.ones(2, 2, dtype=dtype, device=device, requires_grad=True)
        return (x @ x).dtype, (x @ x).requires_grad, torch.cat([x, x]).dtype

    with torch.autocast("cpu", torch.bfloat16):
        assert check(torch.device("cpu"), torch.float16) == (torch.float16, False, torch.float16)


class Wrong(Reference):
    """Right of a row alone: `of` is what it makes of the call and q, k and v."""

    def __init__(self, of: Any, pads: bool = True) -> None:
        self.of, self.pads = of, pads  # type: ignore[misc]  # a class says it of itself

    def forward(self, call: Any, *qkv: Any) -> Any:
        return super().forward(*self.of(call, *qkv))

    def gradients(self, call: Any, grad: Any, *rest: Any) -> Any:
        call, *qkv = self.of(call, *rest[:3])
        return super().gradients(call, grad, *qkv, *rest[3:])


def first(x: Any) -> Any:
    return x[:1].expand_as(x)


def positions_of_the_first(call: Any, *qkv: Any) -> Any:
    pos = call.positions
    return replace(call, positions=replace(pos, q_pos_BL=first(pos.q_pos_BL), k_pos_BS=first(pos.k_pos_BS))), *qkv


def padding_as_text(call: Any, *qkv: Any) -> Any:
    pos = call.positions
    own = [torch.arange(-x.shape[1], 0)[None] + x[:, -1:] + 100 for x in (pos.q_pos_BL, pos.k_pos_BS)]
    return replace(call, positions=replace(pos, q_pos_BL=own[0], k_pos_BS=own[1])), *qkv


FIRST_ROW = {
    "queries": lambda call, q, k, v: (call, first(q), k, v),
    "keys": lambda call, q, k, v: (call, q, first(k), v),
    "values": lambda call, q, k, v: (call, q, k, first(v)),
}
PADDING = {"positions of the first row": positions_of_the_first, "padding as text": padding_as_text}


@pytest.mark.parametrize("what", [*FIRST_ROW, *PADDING])
def test_the_check_of_a_kernel_sees_what_is_right_of_the_first_row_alone(what: str) -> None:
    kind, of = (torch.device("cpu"), torch.float32, 16), {**FIRST_ROW, **PADDING}[what]
    assert check_kernel(Wrong(lambda *given: given), *kind) is None
    assert "its output is off by" in str(check_kernel(Wrong(of), *kind))
    # one that takes no padding is not asked for any, and documents come in one row
    assert (check_kernel(Wrong(of, pads=False), *kind) is None) == (what in PADDING)
    if what in FIRST_ROW:
        assert check_kernel(Wrong(of), *kind, packed=True) is None


def test_the_check_of_a_kernel_sees_keys_found_where_there_are_none() -> None:
    class Infinite(Reference):
        """As flash attention says it: +inf for a row without keys."""

        def forward(self, call: Any, *qkv: Any) -> Any:
            out, lse = super().forward(call, *qkv)
            return out, lse.masked_fill(lse == -math.inf, math.inf)

    assert "its log-sum-exp is off by" in str(check_kernel(Infinite(), torch.device("cpu"), torch.float32, 16))
