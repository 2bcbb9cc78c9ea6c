"""Parts of recipes/extend_context: data, mix, facts, weights, positions, the interval; and what each refuses."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from hf_longctx.evaluation import passkey
from hf_longctx.evaluation.tasks import hidden, needles
from recipes.extend_context import corpus as corpus_module
from recipes.extend_context import facts, train, wordings
from recipes.extend_context import needles as needle
from recipes.extend_context.compare import ratio, rows
from recipes.extend_context.corpus import Corpus, tokens_of
from recipes.extend_context.corpus import prepare as prepared_corpus
from recipes.extend_context.measure import window_ends
from recipes.extend_context.model import load_extended
from recipes.extend_context.settings import DEFAULT, checked, read_config
from recipes.extend_context.smoke import FAR, NEAR
from recipes.extend_context.stock import Stock
from recipes.extend_context.trainer import ExtendTrainer
from recipes.extend_context.windows import Windows, order, short_only

CONFIGS = [DEFAULT, DEFAULT.with_name("config_128k.yaml")]
VARIANTS = [(path, name) for path in CONFIGS for name in (None, *yaml.safe_load(path.read_text())["variants"])]

OWN = {"tokens": 200, "length": 64, "start": 4, "weight": 3.0}
CHATS = {"of": "chats", "tokens": 200, "length": 64, "asked": 16, "greedy": True, "weight": 3.0}
REHEARSED = {"rehearsal": OWN, "mix": {"long": 0.5, "rehearsal": 0.5}}


@pytest.mark.parametrize(("path", "variant"), VARIANTS)
def test_every_variant_is_consistent(path: Path, variant: str | None) -> None:
    made = read_config(path, variant)
    assert made["out"].endswith(variant or made["out"])


def test_the_mix_has_its_shares_from_the_beginning_on() -> None:
    shares = {("long", 64): 0.6, ("short", 8): 0.25, ("retrieval", 16): 0.15}
    kinds = order(shares, 400, 0)
    for at in range(0, 400, 20):
        assert Counter(k for k, _ in kinds[at : at + 20]) == {"long": 12, "short": 5, "retrieval": 3}
    assert order(shares, 400, 0) == kinds != order(shares, 400, 1)
    assert short_only(shares) == {("short", 8): 1.0}


def test_windows_are_documents_and_weigh_answers(config: dict[str, Any], tokenizer: Any, corpus: Corpus) -> None:
    windows = Windows(corpus.training, tokenizer, config)
    texts = [ids.tolist() for ids in corpus.training.values()]
    for number in range(len(windows)):
        kind, length = windows.kinds[number]
        batch = windows[number]
        assert batch["input_ids"].shape == (config["batch_tokens"] // length, length)
        assert torch.equal(batch["input_ids"][:, 1:], batch["labels"][:, :-1])
        assert all(torch.equal(one, windows[number][name]) for name, one in batch.items())
        answers = batch["loss_weights"] == 4
        assert bool(answers.any()) is (kind == "retrieval")
        if kind != "retrieval":
            row = batch["input_ids"][0].tolist()
            assert any(row == text[at : at + length] for text in texts for at in range(len(text) - length))


@pytest.mark.parametrize("more", [{}, {"varied": True}, {"varied": True, "apart": 1.0, "near": 0.5}])
def test_facts_are_in_the_text_and_answered(more: dict[str, Any], tokenizer: Any) -> None:
    text = [tokenizer("x")["input_ids"][0]] * 600
    for seed in range(50):
        row = facts.hide(random.Random(seed), tokenizer, text, 401, {"facts": 3, "weight": 4, **more})
        ids, weights = row.ids, row.weights
        assert len(ids) == len(weights) == 401
        assert 1 <= len(row.asked) <= 3
        assert sum(weight == 4 for weight in weights[:1]) == 0
        answered = 0
        for fact, answer in row.asked:
            assert fact < answer
            assert weights[answer - 1] == 1
            length = next((n for n, one in enumerate(weights[answer:]) if one != 4), len(weights) - answer)
            answered += length
            value = tokenizer.decode(ids[answer : answer + length]).strip(" ")
            assert value.endswith(".")
            assert value[:-1] in tokenizer.decode(ids[fact : fact + 60]), "told where it should be"
        assert answered == sum(weight == 4 for weight in weights), "every answer once"
        if not more:
            assert tokenizer.decode(ids).count(value.strip(".")) == 2, "once in the text, once as the answer"


def test_questions_stand_at_the_end_or_by_themselves(tokenizer: Any) -> None:
    text = [tokenizer("x")["input_ids"][0]] * 3000
    settings = {"facts": 8, "weight": 4}
    for seed in range(20):
        row = facts.hide(random.Random(seed), tokenizer, text, 2001, settings)
        first = min(answer for _, answer in row.asked)
        assert text[0] not in row.ids[first:], "no text between questions at the end"
    apart = [facts.hide(random.Random(seed), tokenizer, text, 2001, settings | {"apart": 1.0}) for seed in range(20)]
    after = [answer for row in apart for _, answer in row.asked]
    assert sum(answer < 1800 for answer in after) > 0.5 * len(after)
    close = [
        facts.hide(random.Random(n), tokenizer, text, 2001, settings | {"apart": 1.0, "near": 1.0}) for n in range(9)
    ]
    distances = [answer - fact for row in close for fact, answer in row.asked]
    assert sum(distance < 200 for distance in distances) > 0.4 * len(distances)


def test_facts_are_of_many_kinds(tokenizer: Any) -> None:
    rng = random.Random(0)
    values = [wordings.a_value(rng) for _ in range(2000)]
    digits = [one for one in values if one.isdigit()]
    assert 0.45 < len(digits) / len(values) < 0.6
    assert {len(one) for one in digits} >= set(range(3, 11))
    assert len(set(values)) > 1800
    made = facts.many_kinds(rng, tokenizer, 64)
    assert len({tuple(one.question) for one in made}) == 64, "no key is asked for twice"
    for fact, question, start in wordings.VARIED:
        keys = [kind for kind in wordings.KEYS if f"{{{kind}}}" in question.lower()]
        assert len(keys) == 1, question
        assert f"{{{keys[0]}}}" in fact.lower()
        assert "{value}" in fact
        assert "{value}" not in question + start
    assert len({question for _, question, _ in wordings.VARIED}) == len(wordings.VARIED) > 30


def test_words_are_not_those_of_the_evaluation() -> None:
    own = [part for wording in wordings.VARIED for part in (*wording, f"{wording[1]} {wording[2]}")]
    evaluated = [passkey.TASK, passkey.INFO, passkey.QUESTION, needles.NEEDLE, *needles.ONE, *needles.MANY]
    evaluated += [*hidden.Needle(name="").words(random.Random(0)), *hidden.Number(name="").words(random.Random(0))]

    def runs(texts: list[str]) -> set[tuple[str, ...]]:
        words = [re.findall(r"[a-z]+", text.lower()) for text in texts]
        return {tuple(one[at : at + 3]) for one in words for at in range(len(one) - 2)}

    assert not runs(own) & runs(evaluated)
    assert not {"key", "magic", "number"} & set(re.findall(r"[a-z]+", " ".join(own).lower()))


def test_the_loss_is_the_weighted_sum_over_all_targets(
    config: dict[str, Any], tokenizer: Any, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = config | {"mix": {"retrieval": 1.0}, "out": str(tmp_path / "out"), "tokens": config["tokens_per_step"]}
    one["training"] = config["training"] | {"max_grad_norm": 1e9}
    found: dict[str, torch.Tensor] = {}
    stock_step = ExtendTrainer._clip_grad_norm

    def keep(self: ExtendTrainer, model: Any) -> Any:
        found.update({name: p.grad.clone() for name, p in model.named_parameters()})
        return stock_step(self, model)

    monkeypatch.setattr(ExtendTrainer, "_clip_grad_norm", keep)
    model, _ = load_extended(one)
    windows = Windows(corpus.training, tokenizer, one)
    losses = train.trained(model, tokenizer, windows, one, None, False, Stock(one))["losses"]
    plain: Any = load_extended(one)[0].double().train()
    total = torch.zeros((), dtype=torch.float64)
    batches = [windows[number] for number in range(len(windows))]
    for batch in batches:
        logits = plain(batch["input_ids"], use_cache=False).logits
        nll = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="none")
        total = total + (nll * batch["loss_weights"].flatten()).sum()
    total = total / sum(batch["labels"].numel() for batch in batches)
    total.backward()
    assert losses == [pytest.approx(total.item(), rel=1e-5)]
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name].double(), parameter.grad, rtol=1e-4, atol=1e-7)


def test_ratio_is_that_of_the_means_and_its_interval_covers() -> None:
    rng = np.random.default_rng(0)
    near, gain = rng.normal(3, 0.5, 40), rng.normal(0.02, 0.01, 40)
    ours = {name: {"ends": [1], "nll": {"64": list(near - gain)}} for name in "ab"}
    other = {name: {"ends": [1], "nll": {"8": list(near)}} for name in "ab"}
    found = ratio(ours, 64, other, 8)
    assert found["mean"] == pytest.approx(math.exp(-gain.mean()))
    half = 1.96 * gain.std() / math.sqrt(80)
    assert found["low"] == pytest.approx(found["mean"] * math.exp(-half), abs=3e-4)
    assert found["high"] == pytest.approx(found["mean"] * math.exp(half), abs=3e-4)
    assert [*rows(ours, other, "it")] == ["64 over it at 8"]
    with pytest.raises(ValueError, match="end at different places"):
        ratio(ours, 64, {name: {**one, "ends": [2]} for name, one in other.items()}, 8)
    with pytest.raises(ValueError, match="no contexts of 32 tokens"):
        ratio(ours, 32, other, 8)


def test_targets_of_windows_do_not_overlap() -> None:
    ends = window_ends(1000, 600, 32, 100)
    assert (ends[0], ends[-1], len(ends)) == (600, 1000, 13)
    assert min(b - a for a, b in itertools.pairwise(ends)) >= 32
    assert window_ends(600, 600, 32, 8) == [600]


def test_needles_are_where_they_should_be_and_found_by_a_reader(tokenizer: Any, corpus: Corpus) -> None:
    hay = corpus.held["novel"].tolist()
    for depth in (0.0, 0.5, 1.0):
        ids, value = needle.prompt(tokenizer, hay, FAR, depth, "0")
        assert len(ids) == FAR - needle.ANSWER
        text = tokenizer.decode(ids)
        before = len(tokenizer(text[: text.index(value)])["input_ids"]) / len(ids)
        assert before == pytest.approx(0.25 + 0.5 * depth, abs=0.25)

    class Reader:
        """Answers with the last number of seven digits."""

        device = torch.device("cpu")
        generation_config = SimpleNamespace(eos_token_id=0)

        def generate(self, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            rows = [re.findall(r"\d{7}", tokenizer.decode(row))[-1] for row in ids]
            answers = [tokenizer(f" {row}")["input_ids"] for row in rows]
            longest = max(map(len, answers))
            return torch.cat([ids, torch.tensor([row + [0] * (longest - len(row)) for row in answers])], dim=1)

    assert needle.found(Reader(), tokenizer, FAR, hay, [0.0, 1.0], 3, 2) == {"0.00": 3, "1.00": 3}
    with pytest.raises(ValueError, match="the needle and its question alone take"):
        needle.prompt(tokenizer, hay, 64, 0.5, "0")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_name": 1}, "model_name: not settings of this recipe"),
        ({"mix": {"long": 0.5}}, "expected shares of long, short, retrieval, rehearsal that add up to 1"),
        ({"tokens_per_step": FAR // 2}, "the longest window has 512 tokens"),
        ({"batch_tokens": FAR // 2}, "the longest window has 512 tokens"),
        ({"short": [100]}, r"\[100\] are not divisors"),
        ({"tokens": 1}, "at least the 1024 of one step"),
        ({"short_first": 0.5, "mix": {"long": 1.0}}, "the mix has no short windows"),
        ({"retrieval": {"lengths": [256], "facts": 2}}, "retrieval: .*expected lengths, facts and weight"),
        ({"retrieval": {"lengths": [256], "facts": 2, "weight": 4, "nearby": 1}}, "varied, apart and first go too"),
        (
            {"retrieval": {"lengths": [256], "facts": 2, "weight": 4, "apart": 2}},
            "apart: 2: expected a share from 0 to 1",
        ),
        (
            {"retrieval": {"lengths": [256], "facts": 2, "weight": 4, "first": -1}},
            "first: -1: expected a share from 0 to 1",
        ),
        ({"train": "q_proj"}, "train: q_proj: expected ends of modules' names"),
        ({"train": []}, r"train: \[\]: expected ends of modules' names"),
        ({"pose": {"kinds": ["retrieval"], "chunks": 1}}, "expected kinds, some of long, short, retrieval, and chunks"),
        (
            {"pose": {"kinds": ["retrieval"], "chunks": 2, "span": FAR - 1}},
            "span: 511: expected at least the length, 512",
        ),
        ({"pose": {"kinds": ["needles"], "chunks": 2}}, "expected kinds, some of long, short, retrieval, and chunks"),
        ({"pose": {"kinds": ["long"], "chunks": 2}}, "the mix has no window of these that is shorter than length, 512"),
        ({"mix": {"long": 0.9, "rehearsal": 0.1}}, "mix: rehearsal: 0.1: of which texts"),
        ({"rehearsal": OWN}, "rehearsal: .*the mix has none"),
        (REHEARSED | {"rehearsal": OWN | {"start": 64}}, "start, the tokens that each text has of a document"),
        (REHEARSED | {"rehearsal": OWN | {"of": "songs"}}, "of: songs: expected documents or chats"),
        (REHEARSED | {"rehearsal": OWN | {"towards": "text"}}, "towards: text: expected distribution or tokens"),
        (REHEARSED | {"rehearsal": OWN | {"of": "chats"}}, "of chats, expected tokens.* asked and greedy"),
        (REHEARSED | {"rehearsal": CHATS | {"asked": 64}}, "asked, the tokens that a user's turn has at most"),
        (REHEARSED | {"rehearsal": CHATS | {"greedy": "no"}}, "greedy: no: expected true or false"),
        (REHEARSED | {"rehearsal": OWN | {"weight": 0}}, "a weight above 0"),
        (REHEARSED | {"rehearsal": OWN | {"tokens": 63}}, "tokens: 63: expected at least a window, 64"),
        (REHEARSED | {"memory": {"chunked_loss": False, "tile": 8}}, "rehearsal: the divergence is computed in chunks"),
        (
            REHEARSED | {"pose": {"kinds": ["rehearsal"], "chunks": 2}},
            "expected kinds, some of long, short, retrieval, and chunks",
        ),
        ({"distil": {"weight": 0, "length": 64}}, "expected a weight above 0"),
        ({"distil": {"weight": 1, "length": 32}}, "the mix has no short window of at most so many tokens"),
        ({"distil": {"weight": 1, "length": 64}, "memory": {"chunked_loss": False, "tile": 8}}, "computed in chunks"),
    ],
)
def test_settings_that_cannot_work(change: dict[str, Any], said: str, config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=said):
        checked(config | change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"length": 2**20}, r"no document to train on is longer than that; the longest, \w+, has \d+ tokens"),
        ({"held_back": ["manual", "nowhere"]}, "nowhere: not among the documents, which are long, manual, novel"),
        ({"documents": "nowhere"}, r"recipes.benchmarks.documents nowhere` fetches some"),
        ({"overlap": 0.0}, "of its tokens lie in runs of 13 that are trained on"),
        ({"held_back": ["manual", "novel", "long", "other"]}, "there is none"),
        ({"evaluation": {"lengths": [2**20]}}, "these held-back documents are shorter"),
    ],
)
def test_documents_that_cannot_work(change: dict[str, Any], said: str, config: dict[str, Any], tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=said):
        prepared_corpus(config | change, tokenizer)


def test_a_text_is_tokenised_in_parts_as_at_once(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n\n".join(topics.values())[:40_000] + "\n\n \n end \n"
    monkeypatch.setattr(corpus_module, "PART", 300)
    assert tokens_of(tokenizer, text).tolist() == tokenizer(text)["input_ids"]


def test_a_document_held_back_and_trained_on_is_refused(config: dict[str, Any], tokenizer: Any, tmp_path: Path) -> None:
    for file in Path(config["documents"]).glob("*.txt"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "copy.txt").write_text((tmp_path / "novel.txt").read_text(encoding="utf-8").upper(), encoding="utf-8")
    with pytest.raises(ValueError, match=r"novel \(trained on as copy\)"):
        prepared_corpus(config | {"documents": str(tmp_path)}, tokenizer)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"positions": {"type": "base", "theta": 5000.0}}, "expected more than the model's rope_theta, 10000"),
        ({"positions": {"type": "alibi"}}, "expected one of base, yarn"),
        ({"positions": {"type": "base", "factor": 8}}, "base does not take these fields"),
        ({"length": NEAR}, "the model reads 128 already"),
    ],
)
def test_positions_that_cannot_work(change: dict[str, Any], said: str, config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=said):
        load_extended(config | change)


def test_a_scaled_model_and_another_tokenizer_are_refused(config: dict[str, Any], tmp_path: Path) -> None:
    model, tokenizer = load_extended(config | {"positions": {"type": "yarn", "factor": 4}})
    model.save_pretrained(tmp_path)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="scaled already"):
        load_extended(config | {"model": str(tmp_path), "length": 2 * FAR})
    AutoModelForCausalLM.from_pretrained(config["model"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the tokenizer has 501 tokens and the model 500 embeddings"):
        load_extended(config | {"model": str(tmp_path)})


def test_facts_as_often_near_as_far() -> None:
    rng = random.Random(0)
    drawn = [place for _ in range(200) for place in facts.places(rng, 4096, 8, 1.0)]
    assert len(drawn) == 1600
    assert set(drawn) <= set(range(4096))
    within_64 = sum(place >= 4096 - 64 for place in drawn)
    assert 0.4 < within_64 / 1600 < 0.6, "half of the logarithm of 4,096"
    even = [place for _ in range(200) for place in facts.places(rng, 4096, 8, 0.0)]
    assert sum(place >= 4096 - 64 for place in even) / 1600 < 0.05
    assert len(set(facts.places(rng, 8, 8, 1.0))) == 8, "every place of a short window"


def test_facts_at_the_very_beginning() -> None:
    rng = random.Random(0)
    drawn = [facts.places(rng, 4096, 8, 0.25, 0.25) for _ in range(200)]
    assert all(len(set(row)) == 8 and set(row) <= set(range(4096)) for row in drawn)
    begin = sum(place < facts.FIRST for row in drawn for place in row)
    assert 0.2 < begin / 1600 < 0.3
    assert sorted(facts.places(rng, 8, 8, 0.0, 1.0)) == list(range(8)), "every place of a short window"
    assert all(place < 200 for place in facts.places(rng, 4096, 100, 0.0, 1.0)), "many facts take more of it"
    again = [random.Random(3), random.Random(3)]
    assert facts.places(again[0], 99, 4, 0.5) == facts.places(again[1], 99, 4, 0.5, 0.0), "as before without any"
