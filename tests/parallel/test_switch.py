"""A stock model under the switch answers for the whole batch what one process answers, with all its gradients."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.distributed as dist

from hf_longctx import SequenceParallel

from .models import BATCHES, MODELS, PACKED, Case, batch, make, off_gradients, on_a_rank, relative, stock
from .pool import Pool

EXACT = 1e-5  # rounding of fp32: 3e-6 was seen
KINDS = ["ring", "gather", "ulysses"]
CHECKPOINTING = ["", "plain", "reentrant"]
HEADS = [(9, 3), (32, 8)]
PACKS = ["dense odd", "packed odd", "short whole"]
ON_TWO = [Case(*case) for case in product(MODELS, PACKS, KINDS, CHECKPOINTING, HEADS)]
# models and batches of several rows in full; each kind and each checkpointing meets each of them
ROWS_ON_TWO = [
    Case(model, pack, kind, CHECKPOINTING[(m + b + k) % 3])
    for m, model in enumerate(MODELS)
    for b, pack in enumerate(["rows", "packed rows"])
    for k, kind in enumerate([*KINDS, "hybrid"])
]
EXPERTS = [Case("mixtral", "packed odd", kind, "plain") for kind in KINDS]
# models and kinds in full; both meet each pack, each checkpointing and both numbers of heads
FOUR_PACKS = [*PACKS, "rows", "packed rows", "fewer tokens than ranks"]
ON_FOUR = [
    Case(model, FOUR_PACKS[(2 * m + k) % 6], kind, CHECKPOINTING[(m + k) % 3], HEADS[(m + k // 2) % 2])
    for m, model in enumerate(MODELS)
    for k, kind in enumerate([*KINDS, "hybrid"])
]


@pytest.mark.parametrize("case", [*ON_TWO, *ROWS_ON_TWO, *EXPERTS], ids=str)
def test_two_ranks_are_one_process(two: Pool, case: Case) -> None:
    for off in two.run(on_a_rank, case):
        assert max(off.values()) < EXACT, {name: x for name, x in off.items() if x >= EXACT}


@pytest.mark.parametrize("case", ON_FOUR, ids=str)
def test_four_ranks_are_one_process(four: Pool, case: Case) -> None:
    for off in four.run(on_a_rank, case):
        assert max(off.values()) < EXACT, {name: x for name, x in off.items() if x >= EXACT}


def one_token() -> float:
    model, ids = make("llama"), torch.tensor([[5]])
    right = model(ids, use_cache=False).logits
    with SequenceParallel(degree=dist.get_world_size(), gather_logits=True).on(model):
        return relative(model(ids).logits, right)


def test_ranks_without_tokens_take_part(four: Pool) -> None:
    assert max(four.run(one_token)) < EXACT


def other_ways() -> dict[str, float]:
    """The same pack, said in every way in which collators say it."""
    rows, given = BATCHES["packed odd"][0], batch(BATCHES["packed odd"][0])
    loss, _, grads = stock("llama", "packed odd")
    ids, labels = given["input_ids"], given["labels"]
    edges = torch.tensor([0, *torch.tensor(rows[0]).cumsum(0)], dtype=torch.int32)
    lengths = {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": 61, "max_length_k": 61}
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    numbers = torch.cat([torch.full((n,), i) for i, n in enumerate(rows[0])])[None]
    embedded = make("llama").get_input_embeddings()(ids).detach().requires_grad_()
    ways = {
        "positional": ((ids, None, given["position_ids"]), {"labels": labels}),
        "all-ones mask": ((), given | {"attention_mask": torch.ones_like(ids)}),
        "lengths": ((), {"input_ids": ids, "labels": labels} | lengths),
        "both": ((), given | lengths | {"seq_idx": numbers.int()}),
        "shifted": ((), given | {"labels": None, "shift_labels": shifted}),
        "counted": ((), given | {"num_items_in_batch": (shifted != -100).sum()}),
        "tuple": ((), given | {"return_dict": False}),
        "embeddings": ((), given | {"input_ids": None, "inputs_embeds": embedded}),
    }
    off = {}
    for way, (args, kwargs) in ways.items():
        model = make("llama")
        with SequenceParallel(degree=dist.get_world_size(), cut="all").on(model):
            out = model(*args, **kwargs)
        found = out[0] if isinstance(out, tuple) else out.loss
        found.backward()
        off[way] = max(abs(found.item() / loss - 1), *off_gradients(model, grads).values())
    at = embedded.grad
    assert at is not None
    dist.all_reduce(at)
    mine = make("llama").get_input_embeddings()
    mine(ids).backward(at / dist.get_world_size())
    off["gradient of embeddings"] = relative(mine.weight.grad, grads["model.embed_tokens.weight"])
    return off


def test_packs_in_the_words_of_every_collator(two: Pool) -> None:
    for off in two.run(other_ways):
        assert max(off.values()) < EXACT, off


def without_targets() -> dict[str, list[float]]:
    """The loss of batches in which nothing is predicted, and the largest of all gradients."""
    given = batch([PACKED])
    ids, none = given["input_ids"], torch.full_like(given["labels"], -100)
    batches = {
        "no labels": given | {"labels": none},
        "no shifted labels": given | {"shift_labels": none},
        "one token": {"input_ids": ids[:, :1], "labels": ids[:, :1]},
        "documents of a token": {"input_ids": ids, "labels": ids, "position_ids": torch.zeros_like(ids)},
        "padding": {"input_ids": ids, "labels": ids, "attention_mask": torch.zeros_like(ids)},
        "counted": given | {"labels": none, "num_items_in_batch": torch.tensor(0)},
        "counted on the host": given | {"labels": none, "num_items_in_batch": 0},
    }
    found = {}
    for name, one in batches.items():
        model = make("llama")
        with SequenceParallel(degree=dist.get_world_size()).on(model):
            loss = model(**one).loss
            loss.backward()
        found[name] = [loss.item(), max(p.grad.abs().max().item() for p in model.parameters())]
    return found


def test_a_batch_without_targets_has_no_loss_and_no_gradient(two: Pool) -> None:
    for found in two.run(without_targets):
        assert found == {name: [0.0, 0.0] for name in found}


def without_gradients() -> tuple[float, bool, float]:
    given = batch([PACKED])
    model = make("llama").eval()
    with SequenceParallel(degree=dist.get_world_size()).on(model), torch.no_grad():
        out = model(**given)
        alone = model(given["input_ids"], position_ids=given["position_ids"])
    return out.loss.item() / stock("llama", "packed odd")[0] - 1, out.logits is None, float(alone.loss is None)


def test_evaluation_and_no_logits_unless_asked_for(two: Pool) -> None:
    for off, no_logits, no_loss in two.run(without_gradients):
        assert abs(off) < EXACT
        assert no_logits
        assert no_loss


def test_one_process_is_a_group_of_one() -> None:
    """Exact packing on one card too, whatever the arguments that make stock transformers forget the documents."""
    given = batch([PACKED])
    loss, logits, grads = stock("llama", "packed odd")
    model = make("llama")
    with SequenceParallel(degree=1, gather_logits=True).on(model):
        out = model(**given, attention_mask=torch.ones_like(given["input_ids"]))
        out.loss.backward()
    assert out.loss.item() == pytest.approx(loss, rel=EXACT)
    assert relative(out.logits.detach(), logits) < EXACT
    for name, p in model.named_parameters():
        assert relative(p.grad, grads[name]) < EXACT, name


def logits_with_gradient() -> dict[str, float]:
    """A loss that the caller makes from the logits of the whole batch, the same on all ranks, as DPO does."""
    given = batch([PACKED])
    ids, pos = given["input_ids"], given["position_ids"]
    reference = make("gemma3")
    score = (reference(ids, position_ids=pos, use_cache=False).logits.log_softmax(-1)[..., 7] * pos).mean()
    score.backward()
    model = make("gemma3")
    with SequenceParallel(degree=dist.get_world_size(), gather_logits=True).on(model):
        (model(ids, position_ids=pos).logits.log_softmax(-1)[..., 7] * pos).mean().backward()
    return off_gradients(model, {name: p.grad for name, p in reference.named_parameters()})


def test_a_loss_of_the_callers_own(two: Pool) -> None:
    for off in two.run(logits_with_gradient):
        assert max(off.values()) < EXACT, off


def groups_after(times: int, kind: str) -> int:
    """How many process groups there are, once the switch was put on so often."""
    for _ in range(times):
        with SequenceParallel(degree=dist.get_world_size(), kind=kind).on(make("llama")):
            pass
    return len(dist.distributed_c10d._world.pg_map)


@pytest.mark.parametrize("kind", ["ring", "hybrid"])
def test_process_groups_are_made_once(two: Pool, kind: str) -> None:
    """Each takes threads, or memory of a card, as long as the process lives."""
    assert two.run(groups_after, 1, kind) == two.run(groups_after, 3, kind)
