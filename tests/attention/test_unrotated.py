"""A forward without its rotary embedding: the stock forward at angle 0, and nothing of the model's code is changed."""

# B batch, H heads, L tokens, D head dim
from __future__ import annotations

import functools
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as interleaved
from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave as reordering
from transformers.models.gemma3n.modeling_gemma3n import apply_rotary_pos_emb as one_tensor
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as partial
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as sines_first
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as halves
from transformers.models.llama4.modeling_llama4 import apply_rotary_emb as by_complex_numbers

from hf_longctx.anatomy import attention_layers, find_decoder
from hf_longctx.attention.rerotate import angles_of
from hf_longctx.attention.unrotated import Note, noting, unrotated
from hf_longctx.attention.watch import LENT, arguments
from hf_longctx.attention.ways import reach_of
from hf_longctx.upstream.signatures import parameters
from tests.families.table import model_of
from tests.tiny import tiny

# families by how their code rotates
ROTATIONS = {
    "halves": "qwen2",
    "neighbours": "cohere",
    "the first dims": "glm",
    "a slice": "phi",
    "one tensor": "gemma4_text",
    "complex numbers": "llama4_text",
    "complex numbers, tokens first": "deepseek_v2",
    "sines before cosines": "gptj",
    "reordered": "deepseek_v3",
}


class Layer:
    """The last attention layer of a tiny model whose layers all have keys, and what its forward is given."""

    def __init__(self, family: str) -> None:
        shared = {"num_kv_shared_layers": 0} if family == "gemma4_text" else {}
        decoder: Any = find_decoder(model_of(family, **shared))
        rotating = (m for m in attention_layers(decoder) if getattr(m, "use_rope", True))
        self.module: Any = list(rotating)[-1]
        self.stock: Any = type(self.module)
        self.angles = angles_of(decoder)
        self.hidden = torch.randn(1, 7, decoder.config.hidden_size, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def run(self, forward: Any, first: int, step: int = 1) -> Tensor:
        """Its output at the positions `first`, `first` + `step`, ..."""
        pos = first + step * torch.arange(self.hidden.shape[1])[None]
        reach = reach_of(self.stock)
        kwargs = {"attention_mask": None, "position_ids": pos}
        kwargs = arguments(self.stock, kwargs, LENT in parameters(self.stock.forward))
        handed = reach.given(self.angles.embeddings(self.module, self.hidden, pos))
        return forward(self.module, self.hidden, **reach.taken({**kwargs, **handed}))[0]


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_layers_forward_is_the_stock_one_at_angle_0_whatever_the_positions(rotation: str) -> None:
    layer = Layer(ROTATIONS[rotation])
    model_code = vars(sys.modules[layer.stock.__module__])
    before = dict(model_code)
    skips = unrotated(layer.stock.forward)
    still, turned = layer.run(layer.stock.forward, 0, step=0), layer.run(layer.stock.forward, 3)
    torch.testing.assert_close(layer.run(skips, 3), still)  # queries and keys are not reordered yet, both
    with noting() as notes:
        assert torch.equal(layer.run(skips, 3), still)
    assert notes
    assert torch.equal(layer.run(skips, 3), still), "and so it stays"
    assert not torch.allclose(turned, still, rtol=1e-3)
    assert model_code == before, "the model's module is not changed"
    assert torch.equal(layer.run(layer.stock.forward, 3), turned)


def calling(rotate: Any) -> Any:
    """A forward that calls this rotary function, as a model's module would have it."""
    names = {"apply_rotary_pos_emb": rotate, "__name__": "some.model", "__builtins__": __builtins__}
    exec("def forward(*args, **kwargs):\n    return apply_rotary_pos_emb(*args, **kwargs)", names)
    return names["forward"]


def angles(rotate: Any, width: int, scale: float = 1.0) -> tuple[Tensor, ...]:
    """Position embeddings of 5 tokens as a rotary function takes them, at random angles times `scale`."""
    angle = scale * torch.randn(2, 5, width // 2, generator=torch.Generator().manual_seed(1))
    if rotate is by_complex_numbers:
        return (torch.polar(torch.ones_like(angle), angle),)
    if rotate is sines_first:
        return angle.sin(), angle.cos()
    twice = angle.repeat_interleave(2, -1) if rotate is interleaved else torch.cat([angle, angle], -1)
    return twice.cos(), twice.sin()


EVERY = [halves, interleaved, partial, one_tensor, by_complex_numbers, sines_first, reordering]


@pytest.mark.parametrize("rotate", EVERY, ids=lambda f: f"{f.__module__.split('.')[2]}")
def test_a_rotary_function_is_noted_and_not_called(rotate: Any) -> None:
    tokens_first = rotate in (by_complex_numbers, sines_first)
    shape = (2, 5, 4, 8) if tokens_first else (2, 4, 5, 8)
    tensors = [torch.randn(shape) for _ in range(1 if rotate in (one_tensor, sines_first) else 2)]
    skips, turn = unrotated(calling(rotate)), angles(rotate, 4 if rotate is partial else 8)
    rotated = rotate(*tensors, *turn)
    assert not torch.allclose(rotated if isinstance(rotated, Tensor) else rotated[0], tensors[0])
    with noting() as notes:
        skips(*tensors, *turn)
    (note,) = notes
    order = (0, 2, 4, 6, 1, 3, 5, 7) if rotate is reordering else None
    assert note == Note(rotate, len(tensors), (), torch.Size(shape), order)
    still = rotate(*tensors, *angles(rotate, 4 if rotate is partial else 8, scale=0.0))
    out = skips(*tensors, *turn)
    if len(tensors) == 1:
        assert torch.equal(out, still)
        assert rotate is reordering or out is tensors[0]
    else:
        for mine, theirs in zip(out, still, strict=True):
            assert torch.equal(mine, theirs)


def test_other_keywords_are_noted_and_tensors_among_them_refused() -> None:
    x, (cos, sin) = torch.randn(2, 5, 4, 8), angles(halves, 8)
    skips = unrotated(calling(halves))
    with noting() as notes:
        skips(x, k=x, cos=cos, sin=sin, unsqueeze_dim=2)
    assert notes[0].keywords == (("unsqueeze_dim", 2),)
    with noting(), pytest.raises(TypeError, match="tensors besides those to rotate"):
        skips(x, x, cos, sin, torch.ones(1))


def test_a_function_that_does_more_than_rotate_is_refused() -> None:
    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return halves(2 * q, 2 * k, cos, sin)

    x = torch.randn(2, 4, 5, 8)
    with noting(), pytest.raises(TypeError, match="at angle 0 it changes what it is given"):
        unrotated(calling(rotate))(x, x, *angles(halves, 8))


def test_gradients_pass_also_where_dims_are_reordered() -> None:
    for rotate in (halves, reordering):
        x, weight = torch.randn(2, 4, 5, 8, requires_grad=True), torch.randn(2, 4, 5, 8)
        skips, turn = unrotated(calling(rotate)), angles(rotate, 8)
        with noting():
            skips(x.detach(), x.detach(), *turn)
        (ours,) = torch.autograd.grad((skips(x, x, *turn)[0] * weight).sum(), x)
        (stock,) = torch.autograd.grad((rotate(x, x, *angles(rotate, 8, scale=0.0))[0] * weight).sum(), x)
        assert torch.equal(ours, stock)


def test_under_decorators_of_other_code_the_rotation_is_left_out_too() -> None:
    forward: Any = type(tiny("llama").model.layers[0].self_attn).forward
    called: list[str] = []

    def counting(inner: Any, name: str) -> Any:
        @functools.wraps(inner)
        def outer(*args: Any, **kwargs: Any) -> Any:
            called.append(name)
            return inner(*args, **kwargs)

        return outer

    twice = counting(counting(forward, "inner"), "outer")
    layer, pos = Layer("qwen2"), 3
    assert torch.equal(layer.run(unrotated(twice), pos), layer.run(forward, 0, step=0))
    assert called == ["outer", "inner"]
    turned = layer.run(twice, pos)
    assert torch.equal(turned, layer.run(forward, pos)), "the decorated forward itself rotates as before"


def test_functions_that_close_over_each_other_or_over_nothing_yet_come_to_an_end() -> None:
    rotates = calling(halves)

    def one(*args: Any) -> Any:
        return rotates(*args) if args else other()

    def other() -> Any:
        return one()

    x = torch.randn(2, 4, 5, 8)
    assert unrotated(one)(x, x, *angles(halves, 8))[0] is x


def test_forwards_that_rotate_nothing_are_left_alone() -> None:
    def forward(x: int) -> int:
        return x + 1

    assert unrotated(forward) is forward
    assert unrotated(torch.relu) is torch.relu
    rotates_by_nothing = calling(lambda x: x)  # a global named so that takes no angles
    assert unrotated(rotates_by_nothing) is rotates_by_nothing
