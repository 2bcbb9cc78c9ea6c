"""The switch on a GPU: one read of the host a step, and none in layers or backward."""

from __future__ import annotations

import pytest
import torch

from hf_longctx import SequenceParallel
from tests.parallel.models import PACKED, batch, make, relative, stock

pytestmark = pytest.mark.gpu


def test_one_read_a_step_and_none_in_layers() -> None:
    model = make("gemma3").cuda().to(torch.bfloat16)
    given = {name: x.cuda() for name, x in batch([PACKED]).items()}
    reads = []
    with SequenceParallel(degree=1).on(model):
        model(**given).loss.backward()  # kernels are checked on their first use
        torch.cuda.set_sync_debug_mode("error")
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.Tensor, "cpu", counted(torch.Tensor.cpu, reads))
                model(**given).loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(reads) == 1


def counted(read: object, reads: list[int]) -> object:
    def cpu(self: torch.Tensor) -> torch.Tensor:
        reads.append(self.numel())
        torch.cuda.set_sync_debug_mode("default")
        try:
            return read(self)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    return cpu


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_one_card_is_one_process(name: str) -> None:
    loss, logits, _ = stock(name, "packed odd")
    model = make(name).cuda()
    with SequenceParallel(degree=1, gather_logits=True).on(model):
        out = model(**{key: x.cuda() for key, x in batch([PACKED]).items()})
    assert out.loss.item() == pytest.approx(loss, rel=1e-4)  # TF32 is off; sums in another order
    assert relative(out.logits.cpu(), logits) < 1e-4
