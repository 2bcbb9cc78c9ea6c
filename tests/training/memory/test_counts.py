"""What the rungs save, counted: the largest tensor, forwards of MLPs and attention, exchanges, runs of hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_longctx import SequenceParallel, TrainingMemory
from hf_longctx.training.memory.kept import is_attention
from tests.parallel.cases import counted
from tests.parallel.models import MODELS, PACKED, batch, checkpointed, make, stock
from tests.parallel.pool import Pool

from .rungs import ALL, EXACT, OFF, TILE, off, step

LAYERS, WIDE = 3, 97  # the vocabulary and the MLP's 96 are the widest
TOKENS = 141
DENSE = batch([[TOKENS]])
KEPT = TrainingMemory(**{**OFF, "remat": "attention"})


class _Watch(TorchDispatchMode):
    """Every tensor that is made, and every forward of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()
        self.attention = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.attention += is_attention(func)
        result = func(*args, **(kwargs or {}))
        self.shapes |= {tuple(x.shape) for x in tree_leaves(result) if isinstance(x, Tensor)}
        return result


def rows_of_width(watch: _Watch, width: int) -> int:
    """The most rows of a tensor so wide, weights aside."""
    return max(s[:-1].numel() for s in map(torch.Size, watch.shapes) if s[-1:] == (width,) and s[:-1] != (72,))


def test_logits_of_the_sequence_never_exist() -> None:
    for memory, most in ((None, TOKENS), (TrainingMemory(tile=None), 5)):
        model = make("llama")
        if memory is not None:
            memory.apply(model)
        with _Watch() as watch:
            step(model, DENSE)
        assert rows_of_width(watch, WIDE) == most


def test_the_mlp_of_the_sequence_never_exists() -> None:
    for memory, most in ((None, TOKENS), (TrainingMemory(chunked_loss=False, tile=TILE), TILE)):
        model = make("llama")
        if memory is not None:
            memory.apply(model)
        checkpointed(model, "plain")
        with _Watch() as watch:
            step(model, DENSE)
        assert rows_of_width(watch, 96) == most


@contextmanager
def projected(model: Any) -> Iterator[list[int]]:
    """Rows that the first MLP has projected, call by call."""
    rows: list[int] = []
    handle = model.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda module, args, out: rows.append(out.shape[:-1].numel())
    )
    yield rows
    handle.remove()


# a layer that goes on after its MLP (Gemma 3 has a norm there) needs its output in recomputation
@pytest.mark.parametrize(
    ("name", "checkpointing", "times"),
    [("llama", "plain", 2), ("gemma3", "plain", 3), ("llama", "", 2), ("llama", "reentrant", 3)],
)
def test_forwards_of_a_tiled_mlp(name: str, checkpointing: str, times: int) -> None:
    model = make(name)
    TrainingMemory(chunked_loss=False, tile=TILE).apply(model)
    if checkpointing:
        checkpointed(model, checkpointing)
    with projected(model) as rows:
        step(model, DENSE)
    assert sum(rows) == times * TOKENS
    assert max(rows) == TILE


def test_gradients_of_weights_leave_once_a_layer() -> None:
    """Where DDP and FSDP2 put their hooks."""
    model, runs = make("llama"), dict[str, int]()
    ALL.apply(model)
    checkpointed(model, "plain")
    for name, p in model.named_parameters():
        for kind in (p.register_hook, p.register_post_accumulate_grad_hook):
            kind(lambda grad, name=name: runs.update({name: runs.get(name, 0) + 1}))
    step(model, DENSE)
    assert set(runs.values()) == {2}, "one of each kind"
    assert runs.keys() == dict(model.named_parameters()).keys()


def test_gradients_of_weights_are_summed_in_fp32() -> None:
    """Of a bf16 model, tile by tile: nearer to fp64 than sums in bf16, as autograd takes them, would be."""
    from hf_longctx.training.memory.tiles import Tiled, in_tiles

    torch.manual_seed(0)
    x = torch.randn(4096, 16)
    linear = torch.nn.Linear(16, 16, bias=False)
    grad = torch.rand(4096, 16)
    right = grad.double().T @ x.bfloat16().double()
    linear, x, grad = linear.bfloat16(), x.bfloat16(), grad.bfloat16()
    found = []
    for tiled in (True, False):
        linear.weight.grad = None
        if tiled:
            out = in_tiles(Tiled(lambda part, _: linear(part), linear, 8), x)
        else:
            out = torch.cat([linear(part) for part in x.split(8)])
        out.backward(grad)
        found.append(float((linear.weight.grad.double() - right).norm() / right.norm()))
    assert found[0] < 4e-3  # bf16 keeps 8 bits
    assert found[1] > 2 * found[0]


@pytest.mark.parametrize("parallel", [False, True])
def test_attention_is_computed_once_a_layer(parallel: bool) -> None:
    for memory, times in ((None, 2), (KEPT, 1)):
        model = make("llama")
        if memory is not None:
            memory.apply(model)
        checkpointed(model, "plain")
        if parallel:
            SequenceParallel(degree=1).apply(model)
        with _Watch() as watch:
            step(model, DENSE)
        assert watch.attention == times * LAYERS


def exchanges(name: str, keep: bool) -> tuple[int, int, dict[str, float]]:
    """Forwards of attention and exchanges of one step, and how far it is from one process."""
    model = make(name)
    if keep:
        ALL.apply(model)
    SequenceParallel(degree=2, kind="ring", cut="all").apply(model)
    checkpointed(model, "plain")
    given = batch([PACKED])
    with _Watch() as watch, counted() as sent:
        out = model(**given)
        out.loss.backward()
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= 2
    loss, _, grads = stock(name, "packed odd")
    found = float(out.loss.detach()), {key: p.grad for key, p in model.named_parameters()}
    return watch.attention, len(sent.get("batch_isend_irecv", [])), off(found, (loss, grads))


@pytest.mark.parametrize("name", MODELS)
def test_kept_attention_is_not_exchanged_again(two: Pool, name: str) -> None:
    """One exchange a layer in forward and two in backward: 9; recomputed, three more."""
    for keep, forwards in ((False, 2 * LAYERS), (True, LAYERS)):
        for attention, sent, errors in two.run(exchanges, name, keep):
            assert attention == forwards
            if name in ("llama", "smollm3"):  # windows are exchanged in another way
                assert sent == (9 if keep else 12)
            assert max(errors.values()) < EXACT
