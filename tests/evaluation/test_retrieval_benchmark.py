"""The benchmark of look-ups: its texts hide what they should, and its answers are those that a model would write."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from hf_longctx import CodeLookup
from recipes.benchmarks.haystacks import PIECE, Haystacks
from recipes.benchmarks.reader import Lesson, row, teach_
from recipes.benchmarks.retrieval import __main__ as command
from recipes.benchmarks.retrieval import asking, facts, gates, wordings
from recipes.benchmarks.retrieval.asking import Document, answers, document
from recipes.benchmarks.retrieval.blocks import BLOCK, Watch, block_table
from recipes.benchmarks.retrieval.facts import KINDS, Question, hide, question
from recipes.benchmarks.retrieval.kept import KeptReaders
from recipes.benchmarks.retrieval.parts import PARTS
from recipes.benchmarks.retrieval.run import LONG, LONGEST, TINY, Sizes
from tests.contract.registry import close
from tests.evaluation.retrieval_run import SMALL, TOKENIZER, encode, made_texts, run_of
from tests.tiny import tiny


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Haystacks:
    return made_texts(tmp_path_factory.mktemp("texts"))


def test_a_reader_is_asked_in_words_that_it_was_not_taught() -> None:
    taught, asked = (set(" ".join(words).split()) for words in (wordings.TAUGHT_WORDS, wordings.ASKED_WORDS))
    assert not taught & asked
    single = wordings.TAUGHT + wordings.TAUGHT_VALUES
    known = {part for one in single + wordings.TAUGHT_CHAINS for part in one}
    assert not known & {
        *wordings.NUMBER, *wordings.PASS_KEY, *wordings.ASKED_VALUES, *wordings.ASKED_CHAIN,
    }  # fmt: skip


def test_names_that_are_asked_about_share_no_word() -> None:
    for seed in range(20):
        words = " ".join(facts.names(random.Random(seed), 48, taught=False)).split()
        assert len(words) == len(set(words)) == 96


def test_a_long_row_of_a_lesson_has_many_questions(texts: Haystacks) -> None:
    rows = [row(encode, texts, random.Random(seed), 8192) for seed in range(4)]
    runs = [int(((labels[1:] >= 0) & (labels[:-1] < 0)).sum()) for _, labels in rows]
    assert min(runs) >= 2
    assert max(runs) > 8
    assert all(int((labels >= 0).nonzero().min()) >= 4096 for _, labels in rows), "half of a row is text, at least"


def test_no_two_of_the_wordings_that_are_taught_are_alike() -> None:
    for every in (wordings.TAUGHT, wordings.TAUGHT_VALUES, wordings.TAUGHT_CHAINS):
        assert len(set(every)) == len(every)
        assert len({line for line, *_ in every}) == len(every)
        assert all("{a}" not in "".join(one) for one in every if every is not wordings.TAUGHT_CHAINS)


def test_the_learning_rate_of_a_lesson_falls_to_its_end_by_steps_or_by_seconds(
    texts: Haystacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    def kept(optimizer: torch.optim.Optimizer, *given: Any) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(torch.optim.AdamW, "step", kept)
    lesson = Lesson(steps=20, tokens=1024, lengths=(1024,), rate=0.001)
    teach_(tiny(**SMALL), encode, texts, lesson)
    assert len(rates) == 20
    assert rates[-1] == pytest.approx(0.00005)
    rates.clear()
    seconds = iter(range(1000))
    with patch("recipes.benchmarks.reader.time.monotonic", lambda: float(next(seconds))):
        teach_(tiny(**SMALL), encode, texts, replace(lesson, steps=1000, seconds=50.0))
    assert 10 < len(rates) < 40
    assert rates[-1] < 0.1 * lesson.rate


@pytest.mark.parametrize("taught", [True, False], ids=["taught", "asked"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_in_the_lines_and_not_in_the_question(kind: str, taught: bool) -> None:
    rng = random.Random(0)
    for name in facts.names(rng, 20, taught):
        one = question(kind, name, rng, taught)
        assert all(part in " ".join(one.lines) and part not in one.asked for part in one.answers)
        assert len(one.answers) == (3 if kind in ("values", "chain") else 1)
        assert "{" not in "".join((*one.lines, one.asked))


def test_lines_are_hidden_in_their_order_in_a_text_of_the_same_length() -> None:
    hay = torch.zeros(2000, dtype=torch.long)
    questions = [Question("values", (f"a{i}", f"b{i}", f"c{i}"), "", ()) for i in range(4)]
    text = hide(hay, questions, encode, random.Random(1), before=500)
    written = TOKENIZER.decode(text[text > 0])
    assert len(text) == 2000
    assert int(text.nonzero().max()) < 1500
    assert int(text.nonzero().min()) >= facts.FIRST
    for i in range(4):
        assert written.index(f"\na{i}\n") < written.index(f"\nb{i}\n") < written.index(f"\nc{i}\n")
    ends = [int(hide(hay, questions[:1], encode, random.Random(1), depth=d).nonzero().max()) for d in (0.2, 0.6, 1)]
    assert [round(end / 2000, 1) for end in ends] == [0.2, 0.6, 1.0]
    with pytest.raises(ValueError, match=r"have no place for 12 lines\. Take a longer text"):
        hide(hay[:40], questions, encode, random.Random(1))


def test_what_is_scored_after_a_document_is_how_its_text_continues(texts: Haystacks) -> None:
    whole = [piece.numpy().tobytes() for piece in texts.make(texts.distinct, 0).split(PIECE)]
    for seed, length, continued in ((7, 1200, 30), (8, 2 * PIECE, 500), (9, PIECE + 10, 30)):  # at a border, behind it
        made = document(encode, texts, {"number": 2, "chain": 1}, length, seed, before=100, continued=continued)
        assert (len(made.ids_L), len(made.next_N)) == (length, continued)
        both = torch.cat([made.ids_L[-50:], made.next_N]).numpy().tobytes()
        assert any(both in piece for piece in whole), "they are neighbours in one piece of the documents"


def test_halves_share_no_piece(texts: Haystacks) -> None:
    first, second = texts.halves()
    assert first.distinct + second.distinct == texts.distinct

    def pieces(of: Haystacks) -> set[bytes]:
        return {part.numpy().tobytes() for part in of.make(of.distinct, 0).split(PIECE)}

    assert pieces(first) | pieces(second) == pieces(texts)
    assert not pieces(first) & pieces(second)


@pytest.mark.parametrize("method", [None, CodeLookup(n_global=4, n_local=24, top_k=6, shortlist=12, gate=None)])
def test_an_answer_is_right_if_the_model_would_write_it(method: Any, texts: Haystacks) -> None:
    model, ids = tiny(**SMALL), texts.make(200, 0)
    asked = torch.tensor(encode("\nWhat?"))
    whole = torch.cat([ids, asked])[None]
    if method is None:
        written = model.generate(whole, max_new_tokens=6, do_sample=False)[0, whole.shape[1] :]
    else:
        with method.on(model):
            written = model.generate(whole, max_new_tokens=6, do_sample=False)[0, whole.shape[1] :]
    wrong = written.clone()
    wrong[-1] += 1
    ids_of = {" all": written[:3].tolist(), " right": written[3:].tolist(), " wrong": wrong[3:].tolist()}

    def spell(words: str) -> list[int]:
        return ids_of[words] if words in ids_of else encode(words)

    questions = [Question(kind, (), "What?", ("all", kind)) for kind in ("right", "wrong")]
    one = Document(ids, questions, texts.make(16, 1))
    found = answers(model, spell, method, [one], reads="with", chunk=64)
    assert found.right == {"right": [1.0], "wrong": [0.5]}
    full = torch.cat([whole[0], written])[None]
    logits = model(full).logits if method is None else under(method, model, full)
    nll = -logits[0, -7:-1].log_softmax(-1).gather(1, written[:, None]).mean()
    close(torch.tensor(found.nats["right"]), nll[None].detach())
    assert len(found.text) == 1


@pytest.mark.parametrize("few", [1000, 7])
def test_questions_asked_together_are_answered_as_one_by_one(
    few: int, texts: Haystacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_at_once", lambda _: few)
    model, method = tiny(**SMALL), CodeLookup(n_global=4, n_local=48, top_k=6, shortlist=12, gate=None)
    made = document(encode, texts, {"number": 2, "pass key": 1, "values": 1}, 1100, 5, before=400, continued=20)
    alone = answers(model, encode, method, [made])
    batch = answers(model, encode, method, [made], together=True)
    assert batch.right == alone.right
    assert batch.text == pytest.approx(alone.text, rel=1e-5)
    for kind, nats in alone.nats.items():
        assert batch.nats[kind] == pytest.approx(nats, rel=1e-4)


def test_gates_and_margins_stand_side_by_side_until_the_time_is_over(
    texts: Haystacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(texts, replace(TINY, documents=(1, 1, 3)))
    over = iter([False, True])
    monkeypatch.setattr(type(run), "time_is_over", property(lambda _: next(over)))
    rows = {one["what"].split(", ", 2)[2].split(": ")[0]: one for one in gates.gate(run)}
    scores = [f"gate='score', gate_margin={margin}" for margin in (-2, -1, -0.5, 0, 1, 2, 4)]
    assert list(rows) == ["gate=None", *scores, "gate='count'", "gate='heads'"]
    assert rows.pop("gate='heads'")["why"].startswith("share=0.1: no head looks up the next token")
    for one in rows.values():
        assert (one["beside"]["texts"], one["beside"]["questions"]) == (2, 4)
        assert len(one["detail"]["nats of next text"]) == 2
    ratios = [one["beside"]["perplexity of next text, over LM-Infinite's"] for one in rows.values()]
    assert ratios[0] != ratios[1]
    assert all(one["beside"]["of the worst text"] >= ratio for one, ratio in zip(rows.values(), ratios, strict=True))


def under(method: Any, model: Any, ids: Tensor) -> Tensor:
    with method.on(model), torch.no_grad():
        logits: Tensor = model(ids).logits
    return logits


def test_a_row_of_a_lesson_asks_for_what_it_hides(texts: Haystacks) -> None:
    ids, labels = row(encode, texts, random.Random(3), 2048)
    assert ids.shape == labels.shape == (2048,)
    asked = labels != -100
    assert labels[asked].equal(ids[asked])
    hidden = TOKENIZER.decode(ids[: int(asked.nonzero().min())])
    for answer in TOKENIZER.decode(torch.where(asked, ids, encode("|")[0])).split("|"):
        assert all(word in hidden for word in answer.split())
    assert asked.sum() > 8
    again, _ = row(encode, texts, random.Random(3), 2048)
    assert ids.equal(again)


def test_a_lesson_lowers_the_loss_of_answers_and_leaves_the_kind_of_the_weights(texts: Haystacks) -> None:
    model = tiny(**SMALL).to(torch.bfloat16)
    frequencies = model.model.rotary_emb.inv_freq.clone()
    lesson = Lesson(steps=2, tokens=1024, lengths=(1024,), over=2, rate=3e-3)
    before = teach_(model, encode, texts, lesson)
    after = teach_(model, encode, texts, Lesson(**{**vars(lesson), "steps": 12}))
    assert (before["steps"], after["steps"], after["tokens"]) == (2, 12, 12 * 1024)
    assert after["answers' loss"] < before["answers' loss"]
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert model.model.rotary_emb.inv_freq.equal(frequencies)
    assert teach_(model, encode, texts, Lesson(**{**vars(lesson), "seconds": 0.0}))["steps"] == 0


def test_blocks_are_chosen_by_their_mean_key() -> None:
    rng = torch.Generator().manual_seed(0)
    q_RLD, k_SD = torch.randn(2, 3, 8, generator=rng), torch.randn(6 * BLOCK + 5, 8, generator=rng)
    far_LS = torch.zeros(3, len(k_SD), dtype=torch.bool)
    far_LS[1, : 2 * BLOCK], far_LS[2] = True, True
    table = block_table(q_RLD, k_SD, far_LS)
    assert table[0].tolist() == [-1] * 4
    assert sorted(table[1].tolist()) == [-1, -1, 0, 1]
    means = [k_SD[i * BLOCK : (i + 1) * BLOCK].mean(0) for i in range(6)]
    scores = [max(float(q_RLD[r, 2] @ mean) for r in range(2)) for mean in means]
    assert table[2].tolist() == sorted(range(6), key=lambda i: -scores[i])[:4]


def test_the_best_key_is_among_the_signs_where_they_take_all_keys(texts: Haystacks) -> None:
    method = CodeLookup(n_global=4, n_local=24, top_k=6, shortlist=12)
    model, watch = tiny(**SMALL), Watch(24, 4)
    question_ = Question("number", (), "Who?", ("he",))
    answers(model, encode, method, [Document(texts.make(70, 0), [question_], texts.make(9, 1))], watch=watch.on)
    assert watch.found["queries"] > 0
    assert watch.shares()["signs"] == 1.0  # no more than 64 keys are far


def test_bars_are_those_of_a_reader_that_was_taught(texts: Haystacks) -> None:
    taught = {"lesson": {"steps": 1}}
    assert run_of(texts, Sizes.at(LONG), **taught).bar("a", "b") == "a"
    assert run_of(texts, Sizes.at(LONGEST), **taught).bar("a", "b") == "b"
    assert run_of(texts, Sizes.at(LONG)).bar("a", "b") is None
    assert run_of(texts, TINY, **taught).bar("a", "b") is None
    assert Sizes.at(LONG).documents[0] * 12 >= 200
    assert Sizes.at(LONGEST).documents[0] * 12 >= 60


def test_the_command_writes_rows_that_a_later_call_goes_on_with(tmp_path: Path) -> None:
    out = ["--tiny", "--out", str(tmp_path), "--commit", "abc"]
    command.main([*out, "--readers", "stock", "--parts", "text"])
    command.main([*out, "--readers", "tuned", "--seeds", "3", "--parts", "inside"])
    result = json.loads((tmp_path / "retrieval.json").read_text(encoding="utf-8"))
    rows = {one["what"]: one for one in result["rows"]}
    assert len(rows) == 7
    assert rows["stock reader, 2,048 tokens: perplexity of the next text, over LM-Infinite's"]["value"] > 0
    loss = rows["tuned reader, seed 3: loss of its answers when the lesson ended"]
    assert (loss["holds"], loss["why"]) == (False, "the time or the steps were over")
    assert all(one["holds"] is not False or one["why"] for one in rows.values())


def test_a_kept_reader_is_not_taught_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(out: str, seed: int) -> dict[str, Any]:
        out_words = ["--out", str(tmp_path / out), "--keep", str(tmp_path / "readers")]
        command.main(["--tiny", *out_words, "--readers", "tuned", "--seeds", str(seed), "--parts", "inside", "text"])
        found = json.loads((tmp_path / out / "retrieval.json").read_text(encoding="utf-8"))
        return {one["what"]: one["value"] for one in found["rows"]}

    first = rows("first", 0)
    monkeypatch.setattr(command, "teach_", lambda *_: pytest.fail("taught again"))
    assert rows("second", 0) == first
    with pytest.raises(pytest.fail.Exception, match="taught again"):
        rows("other", 1)


def test_calls_at_once_wait_for_the_one_that_teaches_their_reader(tmp_path: Path) -> None:
    readers, lesson, said = KeptReaders(tmp_path, torch.nn.Linear(2, 2), tmp_path), Lesson(), []

    def call(name: str) -> None:
        with readers.alone(lesson):
            if not (found := list(tmp_path.glob("*.safetensors"))):
                time.sleep(0.3)
                readers.save(lesson, {"by": name})
            said.append((name, len(found)))

    calls = [threading.Thread(target=call, args=(name,)) for name in "abc"]
    for one in calls:
        one.start()
    for one in calls:
        one.join(60)
    assert sorted(found for _, found in said) == [0, 1, 1]
    assert len(list(tmp_path.iterdir())) == 2, "weights and notes, and no lock"


@pytest.mark.parametrize("part", ["recall", "passkey", "chains", "blocks", "gate"])
def test_every_row_of_a_part_has_a_value_or_says_why(part: str, texts: Haystacks) -> None:
    for one in PARTS[part](run_of(texts)):
        assert one["value"] is not None or one["why"]
        assert one["bar"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--documents", "x"], "no GPU: one of 80 GB is needed"),
        (["--tiny", "--length", "64k,1M"], "takes one length, not 2"),
        (["--tiny", "--parts", "nonsense"], "invalid choice: 'nonsense'"),
    ],
)
def test_wrong_words_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "no GPU" in said and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        command.main(words)
    assert said in capsys.readouterr().err
