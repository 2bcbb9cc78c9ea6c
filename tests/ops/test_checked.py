"""The comparison on first use: asked once, kept as long as its owner lives, and never passed by nan."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest
import torch

from hf_longctx.ops.checked import KERNEL_TOLERANCE, checked_once, disagreement, relative_error
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
