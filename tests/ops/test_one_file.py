"""A kernel is one new file, and a mask one class: `attend`, the list of kernels and the gradients know them at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hf_longctx.cli import main as cli
from hf_longctx.ops import kernels
from hf_longctx.ops.attend import attend
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.masks import Causal, Mask
from hf_longctx.ops.positions import Positions
from tests.ops.cases import SameParity

KERNEL = '''
"""Plain softmax of whole causal rows."""
import torch

from hf_longctx.ops.kernels.base import Kernel
from hf_longctx.ops.kernels.reference import Reference
from hf_longctx.ops.masks import Causal


class Plain(Kernel):
    """See the module."""

    name = "plain"
    priority = 5
    summary = "plain softmax"
    masks = (Causal,)
    calls = 0

    def forward(self, call, q, k, v):
        type(self).calls += 1
        return Reference().forward(call, q, k, v)

    def gradients(self, *args):
        return Reference().gradients(*args)
'''


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[kernels.Kernel]]:
    (tmp_path / "plain.py").write_text(KERNEL)
    monkeypatch.setattr(kernels, "__path__", [*kernels.__path__, str(tmp_path)])
    kernels.find()
    yield type(kernels.KERNELS["plain"])
    del kernels.KERNELS["plain"]
    del sys.modules["hf_longctx.ops.kernels.plain"], kernels.plain


def branch(mask: Mask) -> Branch:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 9, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    pos = torch.arange(9).expand(2, -1)
    return Branch(q, k, v, Positions(pos, pos), mask)


def test_a_kernel_is_one_file(plain: type[kernels.Kernel]) -> None:
    mine, truth = branch(Causal()), branch(Causal())
    got, expected = attend([mine], scale=0.3), attend([truth], scale=0.3, kernel="reference")
    assert plain.calls == 1, "it comes first, as its priority says"
    assert torch.equal(got, expected)
    got.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(mine.k_BGSD.grad, truth.k_BGSD.grad)
    # a mask that it does not take goes on to one that does, and an error names it with its reason
    attend([branch(SameParity())], scale=0.3)
    assert plain.calls == 1
    with pytest.raises(ValueError, match="plain: it has no SameParity mask"):
        attend([branch(SameParity())], scale=0.3, kernel="plain")
    result = CliRunner().invoke(cli.app, ["kernels", "--chunk", "16", "--head-dim", "8", "--device", "cpu"])
    assert result.exit_code == 0
    assert "plain" in result.output


def test_a_mask_is_one_class() -> None:
    mine = branch(SameParity())
    out = attend([mine], scale=0.3)
    q, k, v = (
        x.detach() for x in (mine.q_BHLD, mine.k_BGSD.repeat_interleave(2, 1), mine.v_BGSD.repeat_interleave(2, 1))
    )
    for row in range(9):
        seen = list(range(row % 2, 9, 2))
        weights = (q[:, :, row : row + 1] @ k[:, :, seen].transpose(-1, -2) * 0.3).softmax(-1)
        assert torch.allclose(out[:, row], (weights @ v[:, :, seen])[:, :, 0], atol=1e-12)
