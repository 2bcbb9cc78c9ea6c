"""What cannot be exact is refused by name, on every rank alike, so that no rank waits for another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    Gemma2Config,
    GptOssConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MixtralConfig,
    Qwen3NextConfig,
)
from transformers.models.llama.modeling_llama import LlamaAttention

from hf_longctx import LMInfinite, RopeScaling, SequenceParallel, shared_prefix

from .models import BASE, PACKED, batch, make, relative, stock
from .pool import Pool

SMALL = {**BASE, "num_hidden_layers": 2}


def said(function: Callable[[], Any]) -> str:
    """What an error says."""
    try:
        function()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"degree": 0}, "degree=0: expected how many processes"),
        ({"kind": "star"}, "kind='star': expected auto, ring, gather, ulysses, hybrid"),
        ({"cut": "some"}, "cut='some': expected 'balance', 'all'"),
        ({"cut": 0}, "cut=0: expected"),
    ],
)
def test_settings(fields: dict[str, Any], expected: str) -> None:
    assert expected in said(lambda: SequenceParallel(**fields))


def rope(**entry: Any) -> LlamaConfig:
    return LlamaConfig(**BASE, rope_parameters={"rope_theta": 10000.0, **entry})


TABLES = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}
ALONE = "under DDP or FSDP2 alone"
STACKS = {"layer_types": ["linear_attention", "full_attention"]}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "dynamic rope": (lambda: rope(rope_type="dynamic", factor=2.0), "rope_type='dynamic' chooses its frequencies"),
    "two tables": (lambda: rope(rope_type="longrope", factor=2.0, **TABLES), "rope_type='longrope' chooses"),
    "several positions": (lambda: rope(rope_type="default", mrope_section=[1, 1, 2]), "several positions each (mrope)"),
    "keys of other layers": (lambda: LlamaConfig(**BASE, num_kv_shared_layers=1), "read the keys of other layers"),
    "chunks": (
        lambda: Llama4TextConfig(**SMALL, num_local_experts=2, layer_types=["chunked_attention", "full_attention"]),
        "layer 0 is of the kind 'chunked_attention'; SequenceParallel serves full_attention and sliding_attention",
    ),
    "softcap": (lambda: Gemma2Config(**SMALL), "its attention has a softcap"),
    "sinks": (lambda: GptOssConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1), "attention sinks"),
    "auxiliary loss": (lambda: MixtralConfig(**SMALL, output_router_logits=True), "output_router_logits=True adds"),
    "convolution": (
        lambda: Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
        "carry a state or a convolution along the sequence",
    ),
    "delta rule": (lambda: Qwen3NextConfig(**SMALL, **STACKS, num_experts=2), "carry a state or a convolution"),
    "hybrid": (
        lambda: BambaConfig(**SMALL, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=36, mamba_n_groups=1),
        "carry a state or a convolution",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_models(what: str) -> None:
    config, expected = REFUSED[what]
    model = AutoModelForCausalLM.from_config(config())
    before = dict(vars(model))
    message = said(lambda: SequenceParallel(degree=1).apply(model))
    assert expected in message
    assert any(advice in message for advice in (ALONE, "Use static frequencies", "Set model.config."))
    assert vars(model) == before


class OwnAttention(LlamaAttention):
    def forward(self, hidden_states: Any, position_embeddings: Any, attention_mask: Any, **kwargs: Any) -> Any:
        q, k, v = (proj(hidden_states) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)), None


def test_attention_that_is_not_reached_by_the_interface() -> None:
    model = make("llama")
    model.model.layers[1].self_attn.__class__ = OwnAttention
    message = said(lambda: SequenceParallel(degree=1).apply(model))
    assert "OwnAttention does not call transformers' attention interface" in message
    assert ALONE in message


def test_parts_and_wrappers_and_methods() -> None:
    switch, model = SequenceParallel(degree=1), make("llama")
    assert "no language modelling head" in said(lambda: switch.apply(model.model))
    classifier = LlamaForSequenceClassification(LlamaConfig(**BASE))
    assert "no language modelling head" in said(lambda: switch.apply(classifier))
    assert "expected a model of transformers" in said(lambda: switch.apply(torch.nn.Sequential(model)))
    with LMInfinite(n_global=2, n_local=16).on(model):
        assert "LMInfinite" in said(lambda: switch.apply(model))
    with switch.on(model):
        assert "is applied to the model" in said(lambda: switch.apply(model))
        assert "already applied" in said(lambda: LMInfinite(n_global=2, n_local=16).apply(model))
        model.eval()
        assert "Undo it" in said(lambda: shared_prefix(model, torch.arange(4)).__enter__())
        assert "no layout has reached its attention" in said(
            lambda: model.model(torch.arange(4)[None], use_cache=False)
        )


def test_an_attention_that_is_changed_under_the_switch() -> None:
    model = make("llama")
    with SequenceParallel(degree=1).on(model):
        model.set_attn_implementation("eager")
        assert "attn_implementation was changed to 'eager'" in said(lambda: model(**batch([PACKED])))
    model(**batch([PACKED]))


def test_scaled_rope_is_no_reason() -> None:
    model = make("llama").eval()
    ids = torch.randint(3, 97, (1, 40))
    with RopeScaling(type="yarn", factor=4.0).on(model):
        right = model(ids, use_cache=False).logits
        with SequenceParallel(degree=1, gather_logits=True).on(model):
            assert relative(model(ids).logits, right) < 1e-5


def test_no_process_group() -> None:
    assert "there is no process group. Start the script with `torchrun" in said(
        lambda: SequenceParallel(degree=2).apply(make("llama"))
    )


def arguments() -> dict[str, str]:
    """What each bad argument gets, on a model under the switch."""
    given = batch([PACKED])
    ids = given["input_ids"]
    model = make("llama")
    left = torch.ones_like(ids)
    left[:, :3] = 0
    cache = model.eval()(ids[:, :4]).past_key_values
    bad: dict[str, dict[str, Any]] = {
        "left padding": {"attention_mask": left},
        "4-D mask": {"attention_mask": torch.ones(1, 1, 153, 153)},
        "masks by kind": {"attention_mask": {"full_attention": None}},
        "cache": {"past_key_values": cache},
        "use_cache": {"use_cache": True},
        "hidden states": {"output_hidden_states": True},
        "router": {"output_router_logits": True},
        "last logits": {"logits_to_keep": 1},
        "positions": {"position_ids": torch.zeros(3, 1, 153, dtype=torch.long)},
        "fewer labels": {"labels": ids[:, 1:]},
        "fewer shifted labels": {"shift_labels": ids[:, 1:]},
        "edges as a list": {"position_ids": None, "cu_seq_lens_q": [0, 61, 153]},
        "no tokens": {name: x[:, :0] for name, x in given.items()},
        "no rows": {name: x[:0] for name, x in given.items()},
    }
    with SequenceParallel(degree=dist.get_world_size()).on(model):
        found = {name: said(lambda more=more: model(**(given | more))) for name, more in bad.items()}
        found["nothing"] = said(lambda: model(labels=ids))
        found["generate"] = said(lambda: model.generate(ids, max_new_tokens=2))
        assert abs(model(**given).loss.item() / stock("llama", "packed odd")[0] - 1) < 1e-5  # goes on
    return found


EXPECTED = {
    "left padding": "row 0 has padding before a token",
    "4-D mask": "attention_mask: (1, 1, 153, 153), expected (1, 153) of 0 (padding, on the right) and 1",
    "masks by kind": "attention_mask: dict, expected",
    "cache": "has no cache: leave out past_key_values",
    "use_cache": "has no cache",
    "hidden states": "output_hidden_states=True",
    "router": "output_router_logits=True",
    "last logits": "logits_to_keep=1",
    "positions": "position_ids of the shape (3, 1, 153)",
    "fewer labels": "labels of the shape (1, 152): expected (1, 153), one for each token",
    "fewer shifted labels": "shift_labels of the shape (1, 152): expected (1, 153)",
    "edges as a list": "cu_seq_lens_q: list, expected a tensor",
    "no tokens": "a batch of (1, 0) has no tokens",
    "no rows": "a batch of (0, 153) has no tokens",
    "nothing": "expected input_ids or inputs_embeds",
    "generate": "To generate, leave the `with` block",
}


def test_arguments_on_all_ranks_alike(two: Pool) -> None:
    one, other = two.run(arguments)
    for name, text in EXPECTED.items():
        assert text in one[name], name
    assert one == other


def different() -> dict[str, str]:
    """A batch that differs between ranks in each of its parts."""
    given = batch([PACKED])
    rank, model = dist.get_rank(), make("llama")
    ids, labels, pos = given["input_ids"], given["labels"], given["position_ids"]
    swapped = ids.clone()
    swapped[0, :2] = ids[0, :2].flip(0) if rank else ids[0, :2]
    swapped[0, 0] += rank
    batches: dict[str, dict[str, Any]] = {
        "tokens": given | {"input_ids": swapped},
        "documents": given | {"position_ids": pos if rank else torch.arange(153)[None]},
        "labels": given | {"labels": labels if rank else ids},
        "length": {"input_ids": ids[:, : 100 + rank]},
        "padding": given | {"attention_mask": (torch.arange(153) < 150 + rank).long()[None]},
        "divisor": given | {"num_items_in_batch": torch.tensor(90 + rank)},
        "refused": given | ({"use_cache": True} if rank else {}),
    }
    with SequenceParallel(degree=2).on(model):
        return {name: said(lambda one=one: model(**one)) for name, one in batches.items()}


def test_different_batches_are_an_error_on_all_ranks(two: Pool) -> None:
    one, other = two.run(different)
    parts = {"tokens": "input_ids", "documents": "position_ids", "labels": "labels", "length": "length of input_ids"}
    for name, part in (parts | {"padding": "marks", "divisor": "num_items_in_batch"}).items():
        for answer in (one, other):
            assert "of a sequence-parallel group got different batches" in answer[name]
            assert part in answer[name]
    assert "length of input_ids: 100 here, 101 there" in one["length"]
    assert "rank 1 of the group has refused its batch" in one["refused"]
    assert "has no cache" in other["refused"]


def dropped() -> tuple[str, str]:
    model = LlamaForCausalLM(LlamaConfig(**BASE, attention_dropout=0.1))
    with SequenceParallel(degree=dist.get_world_size()).on(model):
        return said(lambda: model.train()(**batch([PACKED]))), said(lambda: model.eval()(**batch([PACKED])))


def test_attention_dropout_in_training(two: Pool) -> None:
    for training, evaluating in two.run(dropped):
        assert "LlamaAttention has attention_dropout=0.1, which SequenceParallel does not support" in training
        assert evaluating == "no error"


def degrees() -> dict[str, str]:
    model = make("llama")
    few = LlamaForCausalLM(LlamaConfig(**{**BASE, "num_attention_heads": 3}))
    mesh = init_device_mesh("cpu", (4,))
    return {
        "three": said(lambda: SequenceParallel(degree=3).apply(model)),
        "heads": said(lambda: SequenceParallel(degree=4, kind="ulysses").apply(few)),
        "mesh": said(lambda: SequenceParallel(degree=2).apply(model, mesh)),
        "hybrid": said(lambda: SequenceParallel(degree=4, kind="hybrid").apply(model, mesh)),
    }


def test_degrees_and_meshes(four: Pool) -> None:
    for found in four.run(degrees):
        assert "degree=3: 4 processes cannot be split into groups of 3" in found["three"]
        assert "kind='ulysses': 3 query heads cannot be shared by 4 ranks" in found["heads"]
        assert "degree=2: the mesh has 4 ranks" in found["mesh"]
        assert "kind='hybrid': the mesh has 1 dimension, expected two" in found["hybrid"]


def with_pictures() -> str:
    model = make("llama")
    with SequenceParallel(degree=2).on(model):
        try:
            model(**batch([[20]]), pixel_values=torch.ones(1, 3, 28, 28))
        except ValueError as error:
            return str(error)
    return ""


def test_pictures_beside_a_text(two: Pool) -> None:
    for message in two.run(with_pictures):
        assert message.startswith(
            "pixel_values of the shape (1, 3, 28, 28): under SequenceParallel a model is given texts"
        )
