"""recipes/extend_context: variants joined by +, what is trained, positions that skip, a teacher, counted facts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax
from transformers import AutoModelForCausalLM

from recipes.extend_context import count, screen, train
from recipes.extend_context.corpus import Corpus
from recipes.extend_context.distil import Teacher
from recipes.extend_context.model import ending_with, load_extended, train_only, with_adapters
from recipes.extend_context.pose import skipping
from recipes.extend_context.settings import DEFAULT, checked, left_out, read_config
from recipes.extend_context.smoke import FAR, NEAR
from recipes.extend_context.stock import Stock
from recipes.extend_context.trainer import ExtendTrainer
from recipes.extend_context.windows import Windows

OWN = {"tokens": 300, "length": 64, "start": 4, "weight": 3.0}
DISTIL = {"distil": {"weight": 3.0, "length": NEAR}, "mix": {"short": 1.0}, "short": [64, NEAR]}


def gradients(
    config: dict[str, Any], windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and the gradients of one step of the recipe's training."""
    found: dict[str, torch.Tensor] = {}
    stock_step = ExtendTrainer._clip_grad_norm

    def keep(self: ExtendTrainer, model: Any) -> Any:
        found.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        return stock_step(self, model)

    monkeypatch.setattr(ExtendTrainer, "_clip_grad_norm", keep)
    model, tokenizer = load_extended(config)
    (loss,) = train.trained(model, tokenizer, windows, config, None, False, Stock(config))["losses"]
    return loss, found


def one_step(config: dict[str, Any], change: dict[str, Any], out: Path) -> dict[str, Any]:
    made = config | change | {"out": str(out), "tokens": config["tokens_per_step"]}
    return checked(made | {"training": config["training"] | {"max_grad_norm": 1e9}})


@pytest.mark.parametrize(
    "variant",
    ["all_facts+yarn_cool", "yarn_cold+rehearsal", "far_facts+chat_rehearsal", "pose_short", "queries_and_keys"],
)
def test_no_retrieval_goes_with_every_variant(variant: str) -> None:
    """The other kinds keep their shares beside each other, and only positions of what is left are cut."""
    own, without = read_config(DEFAULT, variant), read_config(DEFAULT, f"{variant}+no_retrieval")
    rest = 1 - own["mix"]["retrieval"]
    assert without["mix"] == pytest.approx(
        {kind: share / rest for kind, share in own["mix"].items() if kind != "retrieval"}
    )
    assert without["pose"] == (own["pose"] and {"pose_short": {"kinds": ["short"], "chunks": 2}}.get(variant))
    changed = {key for key in own if own[key] != without[key]}
    assert changed - {"out"} <= {"mix", "pose", "without"}


def test_what_is_left_out_is_known_and_not_all() -> None:
    config = read_config(DEFAULT)
    assert left_out(config | {"without": ["long", "retrieval"]})["mix"] == {"short": 1.0}
    rehearsed = read_config(DEFAULT, "rehearsal")
    assert checked(left_out(rehearsed | {"without": ["rehearsal"]}))["rehearsal"] is None
    with pytest.raises(ValueError, match=r"without: \['facts'\]: expected a list of kinds of windows, of long, short"):
        left_out(config | {"without": ["facts"]})
    with pytest.raises(ValueError, match="has nothing else"):
        left_out(config | {"without": ["long", "short", "retrieval"]})


def test_variants_are_joined() -> None:
    made = read_config(DEFAULT, "near_facts+queries_and_keys+pose+distil")
    assert made["train"] == ["q_proj", "k_proj"]
    assert made["retrieval"] == {"lengths": [8192, 16384], "facts": 32, "weight": 4, "near": 0.25}
    assert made["pose"] == {"kinds": ["retrieval"], "chunks": 2}
    assert made["out"].endswith("-near_facts+queries_and_keys+pose+distil")
    assert read_config(DEFAULT, "many_facts+near_facts")["retrieval"]["facts"] == 32
    with pytest.raises(ValueError, match="near_facts sets retrieval: facts to 32, and more_facts to 64"):
        read_config(DEFAULT, "near_facts+more_facts")
    with pytest.raises(ValueError, match="yaml has no nothing; it has control"):
        read_config(DEFAULT, "pose+nothing")


def test_only_some_modules_are_trained(config: dict[str, Any]) -> None:
    model, _ = load_extended(config)
    train_only(model, ["q_proj", "mlp.up_proj", "model.norm"])
    left = {name for name, one in model.named_parameters() if one.requires_grad}
    layers = [f"model.layers.{n}" for n in range(2)]
    wanted = {f"{layer}.{part}.weight" for layer in layers for part in ("self_attn.q_proj", "mlp.up_proj")}
    assert left == wanted | {"model.norm.weight"}
    with pytest.raises(ValueError, match=r"train: query, proj: no module .* There are .*k_proj, .*q_proj"):
        ending_with(model, ["q_proj", "query", "proj"])
    with pytest.raises(ValueError, match="rotary_emb: no module with weights"):
        ending_with(model, ["rotary_emb"])
    with pytest.raises(ValueError, match="adapters go on linear layers"):
        with_adapters(model, 4, ["input_layernorm"])


def test_positions_skip_between_chunks() -> None:
    rng = random.Random(0)
    drawn = [skipping(rng, 64, 512, 3) for _ in range(500)]
    for positions in drawn:
        steps = positions.diff()
        assert positions[0] == 0
        assert positions[-1] < 512
        assert bool((steps >= 1).all())
        assert int((steps > 1).sum()) <= 2
    last = torch.stack([positions[-1] for positions in drawn])
    assert last.min() < 200 < 450 < last.max()
    assert len({int(one) for one in last}) > 200


@pytest.mark.parametrize("chunks", [2, 4])
def test_a_window_whose_positions_skip_is_one_document(
    chunks: int,
    config: dict[str, Any],
    tokenizer: Any,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pose = {"kinds": ["retrieval"], "chunks": chunks}
    retrieval = {"lengths": [256], "facts": 2, "weight": 4}
    change = {"pose": pose, "mix": {"retrieval": 1.0}, "retrieval": retrieval, "memory": {"remat": "attention"}}
    made = one_step(config, change, tmp_path / "out")
    windows = Windows(corpus.training, tokenizer, made)
    masks, stock = [], torch.nn.functional.scaled_dot_product_attention

    def attention(*args: Any, attn_mask: Any = None, is_causal: bool = False, **kwargs: Any) -> Any:
        masks.append((attn_mask, is_causal))
        return stock(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    loss, found = gradients(made, windows, monkeypatch)
    assert set(masks) == {(None, True)}, "no mask reaches attention"
    # every token sees all before it, at distances that are differences of positions
    plain: Any = load_extended(made)[0].double().train()
    plain.set_attn_implementation("eager")
    total, targets = torch.zeros((), dtype=torch.float64), 0
    for number in range(len(windows)):
        batch = windows[number]
        assert bool((batch["position_ids"].diff() > 1).any())
        tokens = batch["input_ids"].shape[1]
        seen = torch.full((tokens, tokens), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1)[None, None]
        given = {"position_ids": batch["position_ids"], "attention_mask": seen, "use_cache": False}
        logits = plain(batch["input_ids"], **given).logits
        nll = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="none")
        total = total + (nll * batch["loss_weights"].flatten()).sum()
        targets += batch["labels"].numel()
    (total / targets).backward()
    assert loss == pytest.approx(total.item() / targets, rel=1e-5)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name].double(), parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_loss_of_short_windows_is_their_divergence_from_the_stock_model(
    config: dict[str, Any], tokenizer: Any, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = DISTIL | {"mix": {"short": 0.5, "retrieval": 0.5}, "short": [NEAR]}
    made = one_step(config, change, tmp_path / "out")
    windows = Windows(corpus.training, tokenizer, made)
    loss, found = gradients(made, windows, monkeypatch)
    stock: Any = AutoModelForCausalLM.from_pretrained(made["model"], dtype=torch.float64)
    plain: Any = load_extended(made)[0].double().train()
    total, targets, seen = torch.zeros((), dtype=torch.float64), 0, set()
    for number, (kind, _) in enumerate(windows.kinds):
        batch = windows[number]
        assert batch.get("distilled", False) is (kind == "short")
        seen.add(kind)
        own = log_softmax(plain(batch["input_ids"], use_cache=False).logits, -1)
        if kind == "short":
            with torch.no_grad():
                theirs = log_softmax(stock(batch["input_ids"], use_cache=False).logits, -1)
            # sum of p log(p / q), three times each
            total = total + 3 * (theirs.exp() * (theirs - own)).sum()
        else:
            nll = -own.gather(-1, batch["labels"][..., None])[..., 0]
            total = total + (nll * batch["loss_weights"]).sum()
        targets += batch["labels"].numel()
    assert seen == {"short", "retrieval"}
    (total / targets).backward()
    assert loss == pytest.approx(total.item() / targets, rel=1e-5)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name].double(), parameter.grad, rtol=1e-4, atol=1e-6)


def test_chunks_of_the_divergence(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of few tokens, and with a head that is not trained."""
    from hf_longctx.training.memory import TrainingMemory

    monkeypatch.setattr("recipes.extend_context.distil.CHUNK", 7)
    ids = torch.arange(40).view(2, 20) * 11 % 500
    student: Any = load_extended(config)[0]
    train_only(student, ["q_proj"])
    teacher = Teacher(AutoModelForCausalLM.from_pretrained(config["model"]), NEAR)
    wanted = log_softmax(teacher.model(ids).logits, -1)
    own = log_softmax(student(ids, use_cache=False).logits, -1)
    divergence = (wanted.exp() * (wanted - own)).sum() / 40
    divergence.backward()
    before = {name: one.grad.clone() for name, one in student.named_parameters() if one.grad is not None}
    student.zero_grad()
    with TrainingMemory(tile=None).on(student), teacher.teaching(student, ids):
        out = student(ids, labels=ids, shift_labels=ids, use_cache=False)
        out.loss.backward()
    assert out.loss.item() == pytest.approx(divergence.item(), rel=1e-5)
    assert set(before) == {name for name, one in student.named_parameters() if one.grad is not None}
    for name, grad in before.items():
        torch.testing.assert_close(student.get_parameter(name).grad, grad, rtol=1e-4, atol=1e-8)
    assert all(one.grad is None for one in teacher.model.parameters())
    assert float(student(ids, labels=ids, use_cache=False).loss) > out.loss.item(), "undone"


def test_a_stock_model_teaches_itself_nothing(config: dict[str, Any], tokenizer: Any, corpus: Corpus) -> None:
    made = one_step(config, DISTIL | {"positions": {"type": "stock"}}, Path(config["out"]).parent / "self")
    windows = Windows(corpus.training, tokenizer, made)
    model, _ = load_extended(made)
    (loss,) = train.trained(model, tokenizer, windows, made, None, False, Stock(made))["losses"]
    assert abs(loss) < 1e-5


def test_the_stock_model_does_not_teach_what_it_cannot_read(config: dict[str, Any]) -> None:
    made = checked(config | DISTIL | {"distil": {"weight": 1.0, "length": FAR}})
    with pytest.raises(ValueError, match=r"distil, rehearsal: length: 512: the stock model reads 128 tokens"):
        Teacher.of(made, torch.device("cpu"), Stock(made))


def test_facts_are_counted_by_distance(
    config: dict[str, Any], tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    one = config | {"mix": {"retrieval": 1.0}, "retrieval": {"lengths": [FAR], "facts": 2, "weight": 4}}
    found = list(count.distances(one, tokenizer))
    rows = [row for number in range(24) for row in Windows({"a": torch.zeros(FAR + 2)}, tokenizer, one).rows(number)]
    assert len(found) == sum(len(row.asked) for row in rows)
    assert all(0 < distance < FAR for distance in found)
    assert sum(count.counted(one, tokenizer, FAR)) == len(found)
    posed = checked(
        one | {"retrieval": one["retrieval"] | {"lengths": [256]}, "pose": {"kinds": ["retrieval"], "chunks": 2}}
    )
    far = list(count.distances(posed, tokenizer))
    assert max(far) > 256, "farther than the window is long"
    # what spans more than the length asks as often from its far end as from the middle
    longer = posed | {"pose": posed["pose"] | {"span": FAR + 256}, "tokens": 50 * posed["tokens"]}
    found = [0] * 4
    for distance in count.distances(checked(longer), tokenizer):
        found[min(4 * distance // FAR, 3)] += distance < FAR
    short = [0] * 4
    for distance in count.distances(checked(posed | {"tokens": 50 * posed["tokens"]}), tokenizer):
        short[min(4 * distance // FAR, 3)] += 1
    assert short[3] < 0.5 * short[2]
    assert 0.7 < found[3] / found[2] < 1.3
    words = ["--list", "--model", config["model"], "--tokens", "2000000"]
    screen.main([*words, "--variants", "base", "pose+near_facts"])
    head, names, base, joined = capsys.readouterr().out.splitlines()
    assert "2,000,000 tokens" in head
    assert names.split()[-2:] == ["all", "changes"]
    assert base.split()[-1] == "{}"
    assert joined.startswith("pose+near_facts")
    assert "near: 0.25" in joined
    assert "chunks: 2" in joined
