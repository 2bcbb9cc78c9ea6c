"""Every rung, and any of them together, leave the loss and every gradient of the stock model as they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx import SequenceParallel, TrainingMemory
from hf_longctx.training.memory.log_probs import log_probs_of
from tests.families.table import HERE, model_of
from tests.parallel.models import MODELS, PACKED, batch, checkpointed, make, relative, stock

from .rungs import ALL, EXACT, LADDERS, OFF, TILE, off, step

DENSE = batch([[141]])
CHECKPOINTING = ("", "plain", "reentrant")


# attention is kept by non-reentrant checkpointing only
CASES = [
    (name, rungs, kind)
    for name in MODELS
    for rungs in LADDERS
    for kind in (["plain"] if "remat" in rungs else CHECKPOINTING)
]


@pytest.mark.parametrize(("name", "rungs", "checkpointing"), CASES)
def test_one_document(name: str, rungs: str, checkpointing: str) -> None:
    model = make(name)
    right = step(model, DENSE)
    with LADDERS[rungs].on(model):
        if checkpointing:
            checkpointed(model, checkpointing)
        assert max(off(step(model, DENSE), right).values()) < EXACT


@pytest.mark.parametrize("rungs", LADDERS)
def test_packed_documents_on_one_card(rungs: str) -> None:
    model = make("gemma3")
    with LADDERS[rungs].on(model), SequenceParallel(degree=1).on(model):
        checkpointed(model, "plain")
        found = step(model, batch([PACKED]))
    loss, _, grads = stock("gemma3", "packed odd")
    assert max(off(found, (loss, grads)).values()) < EXACT


@pytest.mark.parametrize("items", [None, 31, torch.tensor(31)])
def test_divisors(items: Any) -> None:
    model, given = make("llama"), batch([[33], [5], [20]])
    right = step(model, given, num_items_in_batch=items)
    with ALL.on(model):
        checkpointed(model, "plain")
        assert max(off(step(model, given, num_items_in_batch=items), right).values()) < EXACT


def test_another_label_is_ignored() -> None:
    model, given = make("llama"), batch([[33], [5], [20]])
    given["labels"] = given["labels"].where(given["labels"] != -100, 5)
    right = step(model, given, ignore_index=5)
    with ALL.on(model):
        checkpointed(model, "plain")
        assert max(off(step(model, given, ignore_index=5), right).values()) < EXACT


def test_shifted_labels_and_log_probs() -> None:
    model, given = make("llama"), batch([[33], [5], [20]])
    shifted = torch.nn.functional.pad(given["labels"][:, 1:], (0, 1), value=-100)
    logits = model(**given, use_cache=False).logits.detach()
    right = logits.log_softmax(-1).gather(2, shifted.clamp(min=0)[..., None])[..., 0].where(shifted != -100, 0)
    with ALL.on(model):
        out = model(**given, shift_labels=shifted)
        torch.testing.assert_close(out.log_probs.detach(), right)
        assert "logits" not in out
        torch.testing.assert_close(model(**given).log_probs.detach(), right[:, :-1])
        loss, log_probs = model(**given, return_dict=False)
        assert loss == out.loss
        assert log_probs.shape == (3, 32)
        # without labels, they are asked for
        torch.testing.assert_close(model(given["input_ids"], given["attention_mask"]).logits.detach(), logits)


def test_log_probs_have_gradients_of_their_own() -> None:
    """As a loss on each sequence has, which is no mean over tokens."""
    model, given = make("qwen3"), batch([[33], [5], [20]])
    weights = torch.rand(3, 32)

    def gradients(log_probs: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        (log_probs * weights).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    labels = given["labels"][:, 1:]
    right = model(**given, use_cache=False).logits[:, :-1].log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])
    expected = gradients(right[..., 0].where(labels != -100, 0))
    with ALL.on(model):
        found = gradients(model(**given).log_probs)
    assert max(off((1.0, found), (1.0, expected)).values()) < EXACT


@pytest.mark.parametrize("more", [{}, {"num_items_in_batch": torch.tensor(0)}, {"num_items_in_batch": 0}])
def test_a_step_without_labels_is_a_finite_zero(more: dict[str, Any]) -> None:
    model = make("llama")
    given = {**DENSE, "labels": torch.full_like(DENSE["labels"], -100)}
    with ALL.on(model):
        checkpointed(model, "plain")
        loss, grads = step(model, given, **more)
    assert loss == 0
    assert all(float(grad.abs().max()) == 0 for grad in grads.values())


def test_log_probs_in_half_precision_are_those_of_fp32() -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, 500, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, 500, (9,))
    right = logits.detach().double().requires_grad_()
    expected = right.log_softmax(-1)[torch.arange(9), labels]
    found = log_probs_of(logits, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(logits.grad.double(), right.grad, rtol=2**-8, atol=1e-7)  # bf16 keeps 8 bits


def test_log_probs_against_finite_differences() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, -100, 6, 0])
    assert torch.autograd.gradcheck(lambda x: log_probs_of(x, labels), (logits,))


TOKENS = {"input_ids": torch.randint(3, 50, (2, 13), generator=torch.Generator().manual_seed(0))}
TOKENS["labels"] = TOKENS["input_ids"].clone()
TOKENS["labels"][0, 3:6] = -100
NO_MLP = {  # families whose layers have a mixture of experts everywhere, but for the last
    *("jetmoe", "mixtral", "qwen3_moe", "qwen3_next", "gpt_oss", "deepseek_v4", "qwen4_exp_text", "minimax"),
    *("hunyuan_v1_moe", "zaya", "lara_mini"),
    "zamba2",  # its attention layers come with their MLP as a block, inside layers of another kind
}
NO_RMS_NORM = {  # layer norms, another norm, or norms without weights
    *("codegen", "cohere", "cohere2", "dory", "falcon", "gpt_neox_japanese", "gptj", "hrm_text", "nemotron", "olmo"),
    *("persimmon", "phi", "stablelm", "starcoder2"),
}


def as_precise_as_needed(model: Any) -> tuple[Any, float]:
    """In double precision where fp32 alone takes the stock model near what these tests ask for; and what they ask for.

    The loss is computed in fp32 then too, by transformers as well. Of a model that makes more of this rounding than
    `EXACT`, no more is asked for than twice what the stock model makes of it.
    """
    model.set_experts_implementation("eager")  # torch has no grouped product of doubles
    torch.manual_seed(1)
    single = step(model, TOKENS)
    double = copy.deepcopy(model).double()
    torch.manual_seed(1)
    right = step(double, TOKENS)
    if max(off(single, right).values()) < EXACT / 4:
        return model, EXACT
    double.zero_grad()
    torch.manual_seed(1)
    logits = double(TOKENS["input_ids"], use_cache=False).logits[:, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS["labels"][:, 1:].flatten())
    loss.backward()
    grads = {name: p.grad.clone() for name, p in double.named_parameters() if p.grad is not None}
    return double, max(EXACT, 2 * max(off((float(loss.detach()), grads), right).values()))


@pytest.mark.parametrize("name", HERE)
def test_families(name: str) -> None:
    model = model_of(name).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model, exact = as_precise_as_needed(model)
    torch.manual_seed(1)
    right = step(model, TOKENS)
    tiled, fused = (TrainingMemory(chunked_loss=False, tile=3), TrainingMemory(**OFF | {"fused_norms": True}))
    for memory in (TrainingMemory(tile=None), tiled, fused):
        if (memory is tiled and name in NO_MLP) or (memory is fused and name in NO_RMS_NORM):
            with pytest.raises(ValueError, match=r"no (MLP|norm) can be (tiled|fused)"):
                memory.apply(model)
            continue
        with memory.on(model):
            torch.manual_seed(1)
            errors = off(step(model, TOKENS), right)
        most = max(errors.values())
        assert most < exact or (memory is fused and most < 2 * rounding_of_norms(model, right)), memory


def rounding_of_norms(model: Any, right: tuple[float, dict[str, Tensor]]) -> float:
    """How far the stock model is from one whose norms are computed in double precision: it makes much of a little."""

    def in_double(norm: Any, one: int) -> Any:
        def forward(x: Tensor) -> Tensor:
            wide = x.double()
            scaled = wide * (wide.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * (norm.weight.double() + one)
            return scaled.to(x.dtype)

        return forward

    norms = [m for m in model.modules() if hasattr(m, "eps") and getattr(m, "weight", None) is not None]
    for norm in norms:
        x = torch.randn(3, len(norm.weight)).to(norm.weight.dtype)
        (one,) = [one for one in (0, 1) if relative(in_double(norm, one)(x), norm(x)) < 1e-6]
        norm.forward = in_double(norm, one)
    torch.manual_seed(1)
    noise = max(off(step(model, TOKENS), right).values())
    for norm in norms:
        del norm.forward
    return noise


def test_softcap_and_scale_count() -> None:
    """The families above would not show it if what is done to logits was left out where it does little."""
    model = model_of("gemma2", final_logit_softcapping=0.5).train()
    right = step(model, TOKENS)
    with TrainingMemory(tile=None).on(model):
        assert max(off(step(model, TOKENS), right).values()) < EXACT
    model.config.final_logit_softcapping = None
    assert abs(step(model, TOKENS)[0] - right[0]) > 1e-2


def test_tied_embeddings_and_a_bias_of_the_head() -> None:
    from tests.tiny import tiny

    given = {name: x.clamp(max=60) for name, x in DENSE.items()}
    model = tiny("llama", tie_word_embeddings=True).train()
    right = step(model, given)
    with ALL.on(model):
        checkpointed(model, "plain")
        assert max(off(step(model, given), right).values()) < EXACT
    model = model_of("phi").train()
    assert model.lm_head.bias is not None
    assert "lm_head.bias" in step(model, TOKENS)[1]


def test_dropout_draws_the_same_numbers_again() -> None:
    """A tile that is computed again must drop what it dropped before."""
    model = make("llama")
    for layer in model.model.layers:
        layer.mlp.down_proj = torch.nn.Sequential(layer.mlp.down_proj, torch.nn.Dropout(0.5))
    with TrainingMemory(chunked_loss=False, tile=TILE).on(model):
        torch.manual_seed(3)
        loss = model(**DENSE, use_cache=False).loss
        loss.backward()
        weight = model.model.layers[0].mlp.up_proj.weight
        direction = torch.randn_like(weight)
        slope = float((weight.grad * direction).sum())
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * 1e-3 * direction
                torch.manual_seed(3)
                ends.append(float(model(**DENSE, use_cache=False).loss))
                weight -= sign * 1e-3 * direction
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(slope, rel=2e-2)
