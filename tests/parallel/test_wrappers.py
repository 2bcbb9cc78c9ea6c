"""The switch among what else is put on a model: undo, saving, copies, PEFT, DDP, FSDP2, half precision, dropout."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import AutoModelForCausalLM

from hf_longctx import SequenceParallel, applied

from .cases import counted
from .models import PACKED, batch, checkpointed, lora, make, off_gradients, relative, stock
from .pool import Pool

EXACT = 1e-5
SWITCH = SequenceParallel(degree=1)


def state_of(model: Any) -> dict[str, Any]:
    modules = {name: dict(vars(m)) for name, m in model.named_modules()}
    return {name: {k: v for k, v in d.items() if not k.startswith("_forward")} for name, d in modules.items()}


def test_undo_leaves_nothing() -> None:
    model = make("gemma3")
    before, config = state_of(model), model.config.to_dict()
    weights = {name: p.clone() for name, p in model.named_parameters()}
    patch = SWITCH.apply(model)
    assert state_of(model) != before
    assert applied(model) == [patch]
    model(**batch([PACKED])).loss.backward()
    patch.undo()
    model.zero_grad()
    assert state_of(model) == before
    assert model.config.to_dict() == config
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_a_failure_rolls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    before = state_of(model)
    monkeypatch.setattr("hf_longctx.parallel.model.switch.forward_of", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        SWITCH.apply(model)
    assert state_of(model) == before


def test_a_stock_model_is_saved(tmp_path: Path) -> None:
    model = make("llama")
    model.save_pretrained(tmp_path / "stock")
    with SWITCH.on(model):
        model.save_pretrained(tmp_path / "switched")
    names = sorted(file.name for file in (tmp_path / "stock").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "switched").iterdir())
    for name in names:
        assert (tmp_path / "stock" / name).read_bytes() == (tmp_path / "switched" / name).read_bytes(), name
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "switched")
    assert loaded.config._attn_implementation == "sdpa"
    assert applied(loaded) == []


def test_a_copy_is_a_model_of_its_own() -> None:
    model = make("llama")
    with SWITCH.on(model):
        twin = copy.deepcopy(model)
    for p in twin.parameters():
        p.data.zero_()
    assert float(twin(**batch([PACKED])).loss.detach()) == pytest.approx(torch.tensor(97.0).log().item())
    applied(twin)[0].undo()
    assert "forward" not in vars(twin)


def peft_both_orders() -> dict[str, float]:
    given, off = batch([PACKED]), {}
    right = lora(make("llama"))
    right(**given, use_cache=False).loss.backward()
    grads = {name: p.grad for name, p in right.named_parameters() if p.grad is not None}
    for order in ("before", "after"):
        for checkpointing in ("", "plain"):
            switch, model = SequenceParallel(degree=dist.get_world_size(), cut="all"), make("llama")
            if order == "before":
                switch.apply(model)
                tuned = lora(model)
            else:
                tuned = lora(model)
                switch.apply(tuned)
            if checkpointing:
                tuned.enable_input_require_grads()
                checkpointed(model, checkpointing)
            tuned(**given).loss.backward()
            off[f"{order} {checkpointing}"] = max(off_gradients(tuned, grads).values())
            assert applied(tuned), "the switch is found through PEFT"
    return off


def test_peft_before_and_after(two: Pool) -> None:
    for off in two.run(peft_both_orders):
        assert max(off.values()) < EXACT, off


def kept(kind: str) -> tuple[list[int], float]:
    """Exchanges of a step under checkpointing, without and with attention kept; and how far off gradients are then."""
    found, off = [], 0.0
    for keep in (False, True):

        def policy(context: Any, op: Any, *args: Any, keep: bool = keep, **kwargs: Any) -> CheckpointPolicy:
            return CheckpointPolicy.MUST_SAVE if keep and "flash_attn" in str(op) else CheckpointPolicy.PREFER_RECOMPUTE

        model = make("llama")
        contexts = functools.partial(create_selective_checkpoint_contexts, policy)
        checkpointed(model, "plain", context_fn=contexts)
        with SequenceParallel(degree=dist.get_world_size(), kind=kind, cut="all").on(model), counted() as sent:
            model(**batch([PACKED])).loss.backward()
        found.append(sum(map(len, sent.values())))
        off = max(off_gradients(model, stock("llama", "packed odd")[2]).values())
    return found, off


@pytest.mark.parametrize(("kind", "forward"), [("ring", 1), ("gather", 1), ("ulysses", 2)])
def test_a_stock_model_keeps_attention_from_recomputation(two: Pool, kind: str, forward: int) -> None:
    for (again, once), off in two.run(kept, kind):
        assert again - once == 3 * forward, "the exchanges of three layers"
        assert off < EXACT


PACKS = [[61, 3, 1, 40, 17], [33, 90, 2]]


def whole_loss(model: Any, own: int | None, groups: int) -> float:
    """Of one pack, or of all: what a plain loop does, with the number of labels of all packs."""
    total, items = 0.0, sum(int((batch([pack])["labels"][:, 1:] != -100).sum()) for pack in PACKS[:groups])
    for i, pack in enumerate(PACKS[:groups]):
        if own in (None, i):
            more = {"use_cache": False} if own is None else {}
            loss = model(**batch([pack]), num_items_in_batch=torch.tensor(items), **more).loss
            (loss * (1 if own is None else groups)).backward()  # ranks are averaged, packs are summed
            total += float(loss.detach())
    return total


def in_a_plain_loop(wrapper: str, name: str, checkpointing: str) -> dict[str, float]:
    groups = dist.get_world_size() // 2
    mesh = init_device_mesh("cpu", (groups, 2), mesh_dim_names=("dp", "sp"))
    right, model = make(name), make(name)
    whole_loss(right, None, groups)
    if checkpointing:
        checkpointed(model, checkpointing)
    patch = SequenceParallel(degree=2, cut="all").apply(model, mesh["sp"])
    wrapped: Any = model
    if wrapper == "ddp":
        wrapped = DistributedDataParallel(model)
    else:
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh._flatten("all"))
        fully_shard(model, mesh=mesh._flatten("all"))
    whole_loss(wrapped, mesh["dp"].get_local_rank(), groups)
    off = {}
    for (key, p), q in zip(model.named_parameters(), right.parameters(), strict=True):
        grad = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
        off[key] = relative(grad, q.grad)
    patch.undo()
    return off


LOOPS = [("ddp", "llama", ""), ("ddp", "gemma3", "reentrant"), ("fsdp2", "llama", "plain"), ("fsdp2", "gemma3", "")]


@pytest.mark.parametrize(("wrapper", "name", "checkpointing"), LOOPS)
def test_plain_loops_on_two_ranks(two: Pool, wrapper: str, name: str, checkpointing: str) -> None:
    for off in two.run(in_a_plain_loop, wrapper, name, checkpointing):
        assert max(off.values()) < EXACT, off


@pytest.mark.parametrize(("wrapper", "name", "checkpointing"), LOOPS[1:3])
def test_plain_loops_on_two_groups_of_two(four: Pool, wrapper: str, name: str, checkpointing: str) -> None:
    for off in four.run(in_a_plain_loop, wrapper, name, checkpointing):
        assert max(off.values()) < EXACT, off


def under_autocast() -> float:
    model = make("llama")
    with SequenceParallel(degree=dist.get_world_size()).on(model), torch.autocast("cpu", torch.bfloat16):
        out = model(**batch([PACKED]))
    out.loss.backward()
    return abs(out.loss.item() / stock("llama", "packed odd")[0] - 1)


def test_autocast(two: Pool) -> None:
    assert max(two.run(under_autocast)) < 3e-2  # bf16 keeps 8 bits


def dropped_features() -> tuple[list[float], list[float]]:
    """What a dropout of 0.5 leaves of ones in the forward, and what the generator gives after it."""
    model, seen = make("llama"), []
    model.model.drop = torch.nn.Dropout(0.5)
    model.model.embed_tokens.register_forward_hook(
        lambda module, args, out: seen.extend(model.model.drop(torch.ones(16)).tolist())
    )
    torch.manual_seed(3)
    with SequenceParallel(degree=dist.get_world_size()).on(model):
        model(**batch([PACKED]))
    return seen, torch.rand(3).tolist()


def test_ranks_drop_different_features_and_their_generators_go_on_alike(two: Pool) -> None:
    one, other = two.run(dropped_features)
    assert one[0] != other[0]
    assert one[1] == other[1]


def saved_under_the_switch() -> str:
    with tempfile.TemporaryDirectory() as folder:
        model = lora(make("llama"))
        with SequenceParallel(degree=dist.get_world_size()).on(model):
            model.save_pretrained(folder)
        return (Path(folder) / "adapter_config.json").read_text()


def test_an_adapter_says_nothing_of_the_switch(two: Pool) -> None:
    for text in two.run(saved_under_the_switch):
        assert "sequence_parallel" not in text
