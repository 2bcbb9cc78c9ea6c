"""The ladder among what else is put on a model: undo, saving, copies, PEFT, DDP, FSDP2, autocast, checkpointing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hf_longctx import SequenceParallel, TrainingMemory, applied
from hf_longctx.upstream.checkpointing import enable_checkpointing
from tests.parallel.models import batch, checkpointed, make, relative
from tests.parallel.pool import Pool
from tests.parallel.test_wrappers import state_of, whole_loss

from .rungs import ALL, EXACT, LADDERS, off, small_chunks, step

DENSE = batch([[141]])


@pytest.mark.parametrize("rungs", LADDERS)
def test_undo_leaves_nothing(rungs: str) -> None:
    model = make("gemma3")
    before, config = state_of(model), model.config.to_dict()
    patch = LADDERS[rungs].apply(model)
    assert state_of(model) != before
    assert applied(model) == [patch]
    patch.undo()
    assert state_of(model) == before
    assert model.config.to_dict() == config


def test_checkpointing_that_was_turned_on_meanwhile_is_stock_after_the_undo() -> None:
    model = make("llama")
    with ALL.on(model):
        checkpointed(model, "plain")
    right = step(make("llama"), DENSE)
    assert max(off(step(model, DENSE), right).values()) < EXACT


def test_a_failure_rolls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    before = state_of(model)
    monkeypatch.setattr("hf_longctx.training.memory.settings.install_kept_attention", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ALL.apply(model)
    assert state_of(model) == before


def test_a_stock_model_is_saved(tmp_path: Path) -> None:
    model = make("llama")
    model.save_pretrained(tmp_path / "stock")
    with ALL.on(model):
        model.save_pretrained(tmp_path / "laddered")
    for file in (tmp_path / "stock").iterdir():
        assert file.read_bytes() == (tmp_path / "laddered" / file.name).read_bytes(), file.name


def test_a_copy_is_a_model_of_its_own() -> None:
    model = make("llama")
    right = step(model, DENSE)
    ALL.apply(model)
    checkpointed(model, "plain")
    twin = copy.deepcopy(model)
    for p in model.parameters():
        p.data.zero_()
    assert max(off(step(twin, DENSE), right).values()) < EXACT
    applied(twin)[0].undo()
    assert "forward" not in vars(twin)
    assert applied(model)


def test_generation_is_stock() -> None:
    model = make("llama").eval()
    ids = DENSE["input_ids"][:, :9]
    right = model.generate(ids, max_new_tokens=5, do_sample=False)
    with ALL.on(model):
        assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), right)


def lora(model: Any) -> Any:
    torch.manual_seed(5)
    settings: dict[str, Any] = {"target_modules": ["q_proj", "up_proj", "down_proj"], "init_lora_weights": False}
    return get_peft_model(model, LoraConfig(r=4, **settings))


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("checkpointing", ["", "plain"])
def test_peft(order: str, checkpointing: str) -> None:
    right = step(lora(make("llama")), DENSE)
    model = make("llama")
    if order == "before":
        ALL.apply(model)
        tuned = lora(model)
    else:
        tuned = lora(model)
        ALL.apply(tuned)
    if checkpointing:
        tuned.enable_input_require_grads()
        checkpointed(model, checkpointing)
    assert max(off(step(tuned, DENSE), right).values()) < EXACT


def test_a_tuned_head() -> None:
    """Parameters of an adapter on the head get their gradients too."""
    tuned = get_peft_model(make("llama"), LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False))
    right = step(tuned, DENSE)
    with TrainingMemory(tile=None).on(tuned):
        assert max(off(step(tuned, DENSE), right).values()) < EXACT


def test_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        right = step(make("llama"), DENSE)
        model = make("llama")
        ALL.apply(model)
        checkpointed(model, "plain")
        found = step(model, DENSE)
    errors = off(found, right)
    assert errors["loss"] < 1e-3
    assert max(errors.values()) < 3e-2  # bf16 keeps 8 bits
    assert all(grad.dtype == torch.float32 for grad in found[1].values())


def test_hidden_states_on_the_host_by_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    # it asks for pinned memory without CUDA too, which torch refuses
    unpinned = lambda **_: torch.autograd.graph.save_on_cpu(pin_memory=False)  # noqa: E731
    monkeypatch.setattr("transformers.modeling_utils.save_on_cpu", unpinned)
    right = step(make("llama"), DENSE)
    model = make("llama")
    ALL.apply(model)
    enable_checkpointing(model, {"use_reentrant": False}, offload=True)
    assert max(off(step(model, DENSE), right).values()) < EXACT


def in_a_plain_loop(wrapper: str, name: str, checkpointing: str, rungs: str, degree: int) -> dict[str, float]:
    import hf_longctx.training.memory.pending as pending

    small_chunks(lambda path, value: setattr(pending, path.rpartition(".")[2], value))
    groups = dist.get_world_size() // degree
    mesh = init_device_mesh("cpu", (groups, degree), mesh_dim_names=("dp", "sp"))
    right, model = make(name), make(name)
    whole_loss(right, None, groups)
    LADDERS[rungs].apply(model)
    if checkpointing:
        checkpointed(model, checkpointing)
    SequenceParallel(degree=degree, cut="all").apply(model, mesh["sp"])
    wrapped: Any = model
    if wrapper == "ddp":
        wrapped = DistributedDataParallel(model)
    else:
        shards = mesh._flatten("all")
        for layer in model.model.layers:
            fully_shard(layer, mesh=shards)
        if wrapper == "fsdp2, head apart":
            fully_shard(model.lm_head, mesh=shards)
        if wrapper == "fsdp2, norm and head":
            fully_shard([model.model.norm, model.lm_head], mesh=shards)
        fully_shard(model, mesh=shards)
    whole_loss(wrapped, mesh["dp"].get_local_rank(), groups)
    found = {}
    for (key, p), q in zip(model.named_parameters(), right.parameters(), strict=True):
        grad = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
        found[key] = relative(grad, q.grad)
    return found


LOOPS = [
    ("ddp", "llama", "", "chunked_loss+tile"),
    ("ddp", "gemma3", "reentrant", "chunked_loss+tile"),
    ("ddp", "gemma3", "plain", "chunked_loss+tile+remat+fused_norms"),
    ("fsdp2", "llama", "plain", "chunked_loss+tile+remat+fused_norms"),
    ("fsdp2", "gemma3", "", "chunked_loss+tile"),
    ("fsdp2", "gemma3", "reentrant", "chunked_loss+tile"),
]


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize(("wrapper", "name", "checkpointing", "rungs"), LOOPS)
def test_plain_loops_on_two_ranks(
    two: Pool, wrapper: str, name: str, checkpointing: str, rungs: str, degree: int
) -> None:
    for found in two.run(in_a_plain_loop, wrapper, name, checkpointing, rungs, degree):
        assert max(found.values()) < EXACT, found


def test_a_head_that_is_sharded_by_itself(two: Pool) -> None:
    for found in two.run(
        in_a_plain_loop, "fsdp2, head apart", "llama", "plain", "chunked_loss+tile+remat+fused_norms", 1
    ):
        assert max(found.values()) < EXACT, found


def in_one_group() -> str:
    with pytest.raises(ValueError, match="the head is in one group of fully_shard") as error:
        in_a_plain_loop("fsdp2, norm and head", "llama", "plain", "chunked_loss", 1)
    return str(error.value)


def test_a_head_that_is_sharded_with_others_is_refused(two: Pool) -> None:
    assert two.run(in_one_group) == [two.run(in_one_group)[0]] * 2
