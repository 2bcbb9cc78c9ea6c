"""recipes/extend_context: chats that the stock model writes itself, which are kept, and what is trained on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from recipes.extend_context import measure, train
from recipes.extend_context.chats import Writer, phrases, turn_of, written_chats
from recipes.extend_context.corpus import Corpus
from recipes.extend_context.model import load_extended
from recipes.extend_context.rehearsal import FILE, check, rehearsal_of
from recipes.extend_context.settings import checked
from recipes.extend_context.stock import Stock
from recipes.extend_context.windows import Windows

CHATML = (
    "<s>system\nBe kind.<e>\n{% for one in messages %}<s>{{ one.role }}\n{{ one.content }}<e>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
PLAIN = "{% for one in messages %}[ASK] {{ one.content }} [/ASK]{% endfor %}"
OWN: dict[str, Any] = {"of": "chats", "tokens": 256, "length": 64, "asked": 16, "greedy": True, "weight": 3.0}
CHANGE: dict[str, Any] = {"rehearsal": OWN, "mix": {"rehearsal": 1.0}, "positions": {"type": "stock"}}


@pytest.fixture
def chatting(config: dict[str, Any]) -> Any:
    """The tiny tokenizer with a chat template, whose turns end with a token of its own."""
    made = AutoTokenizer.from_pretrained(config["model"])
    made.add_tokens([AddedToken("<s>", special=True), AddedToken("<e>", special=True)], special_tokens=True)
    made.chat_template = CHATML
    return made


class Speaker:
    """Says what it is told to: users' turns of the first call, and the next words as answers."""

    device = torch.device("cpu")

    def __init__(self, tokenizer: Any, turns: list[str], answer: str = "Well.<e>") -> None:
        self.tokenizer, self.turns, self.reply = tokenizer, turns, answer
        self.generation_config = GenerationConfig(eos_token_id=tokenizer.convert_tokens_to_ids("<e>"))
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def generate(self, ids: torch.Tensor, *, attention_mask: torch.Tensor, **how: Any) -> torch.Tensor:
        prompts = [self.tokenizer.decode(row[mask > 0]) for row, mask in zip(ids, attention_mask, strict=True)]
        own = prompts[0] == turn_of(self.tokenizer).before
        self.asked += [(prompt, how) for prompt in prompts]
        texts = [self.turns[n % len(self.turns)] for n in range(len(ids))] if own else [self.reply] * len(ids)
        rows = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        most = max(map(len, rows))
        pad = how["generation_config"].pad_token_id
        return torch.cat([ids, torch.tensor([row + [pad] * (most - len(row)) for row in rows])], 1)


def users(tokenizer: Any, rows: list[Any]) -> list[str]:
    """What was asked in them."""
    turn = turn_of(tokenizer)
    texts = [tokenizer.decode(row.ids).split(turn.before)[1].split(turn.mark)[0] for row in rows]
    return [text.strip() for text in texts]


def test_what_a_template_puts_around_a_text_is_found(chatting: Any) -> None:
    turn = turn_of(chatting)
    assert turn.before == "<s>system\nBe kind.<e>\n<s>user\n"
    assert (turn.end, turn.mark) == (chatting.convert_tokens_to_ids("<e>"), "<e>")
    chatting.chat_template = PLAIN
    turn = turn_of(chatting)
    assert (turn.before, turn.end, turn.mark) == ("[ASK] ", None, "[/ASK]")
    chatting.chat_template = "{% for one in messages %}{{ one.content }} or {{ one.content }}?{% endfor %}"
    with pytest.raises(ValueError, match="shows a user's text 2 times"):
        turn_of(chatting)
    chatting.chat_template = "{% for one in messages %}{{ one.content }}{% endfor %}"
    with pytest.raises(ValueError, match="or nothing behind it"):
        turn_of(chatting)


def test_a_model_without_a_template_is_refused_before_anything_is_measured(
    config: dict[str, Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = checked(config | CHANGE | {"out": str(tmp_path / "out")})
    with pytest.raises(ValueError, match=r"has no chat template.*of: documents"):
        check(made, tokenizer)
    check(made | {"rehearsal": None}, tokenizer)
    monkeypatch.setattr(train, "own_answers", None)
    with pytest.raises(ValueError, match="has no chat template"):
        train.run(made)


def test_turns_that_are_none_are_left_out(chatting: Any) -> None:
    """And so is what the evaluation asks: no run of five words of it is in what is trained on."""
    turns = [
        "Why is it so?<e>",
        "why is it SO<e>",
        " \n<e>",
        "It never ends",
        "Hi<s>user\nme<e>",
        "Please write a short poem about cows.<e>",
        "What should I know?<e>",
    ]
    writer = Writer(Speaker(chatting, turns), chatting, OWN)
    with pytest.raises(ValueError, match=r"of 4 users' turns the model has written 2, and none in the last 4.*asked"):
        writer.chats(4)
    first = {"not ended": 2, "empty": 1, "told before": 1, "as in the evaluation": 1, "too long": 0}
    model = Speaker(chatting, turns)
    assert all(prompt.startswith("<s>system") for prompt, _ in model.asked)
    writer = Writer(model, chatting, OWN)
    assert [len(chat.answer) for chat in writer.chats(2)] == [len(chatting("Well.<e>")["input_ids"])] * 2
    assert {key: min(n, 2 if key == "not ended" else 1) for key, n in writer.dropped.items()} == first
    rows, _ = written_chats(Speaker(chatting, turns), chatting, OWN | {"tokens": 128}, 0)
    asked = users(chatting, rows)
    assert sorted(asked) == ["What should I know?", "Why is it so?"]
    shared = {phrase for one in measure.questions() for phrase in phrases(one)}
    assert not shared & {phrase for one in asked for phrase in phrases(one)}
    assert "write a short poem about" in shared
    # the evaluation's own questions are all refused
    every = Writer(Speaker(chatting, [f"{one}<e>" for one in measure.questions()]), chatting, OWN | {"length": 99})
    with pytest.raises(ValueError, match="has written 0"):
        every.chats(1)
    assert every.dropped["as in the evaluation"] > 0
    assert every.dropped["not ended"] == every.dropped["empty"] == 0


def test_a_chat_is_a_row_as_its_template_renders_it(chatting: Any) -> None:
    model = Speaker(chatting, ["Why is it so?<e>", "And now?<e>"], "It is.<e>")
    rows, _ = written_chats(model, chatting, OWN | {"tokens": 128}, 0)
    wanted = {}
    for text in ("Why is it so?", "And now?"):
        told = [{"role": "user", "content": text}]
        prompt = chatting.apply_chat_template(told, add_generation_prompt=True, tokenize=False)
        wanted[text] = [chatting(part, add_special_tokens=False)["input_ids"] for part in (prompt, "It is.<e>")]
    for row in rows:
        (text,) = users(chatting, [row])
        prompt, answer = wanted[text]
        assert len(row.ids) == len(row.weights) == 65
        assert row.ids[: len(prompt) + len(answer)] == prompt + answer
        rest = 65 - len(prompt) - len(answer)
        assert row.weights == [0.0] * len(prompt) + [3.0] * len(answer) + [0.0] * rest, "answers alone are targets"
    hows = [(prompt.endswith("assistant\n"), how["generation_config"]) for prompt, how in model.asked]
    assert {(answers, how.do_sample) for answers, how in hows} == {(False, True), (True, False)}
    for how in (how for answers, how in hows if not answers):
        assert (how.temperature, how.top_k, how.top_p) == (1.0, 0, 1.0), "of its own distribution"
    model.asked.clear()
    written_chats(model, chatting, OWN | {"tokens": 128, "greedy": False}, 0)
    assert {how["generation_config"].do_sample for _, how in model.asked} == {True}
    with pytest.raises(ValueError, match=r"length: 20, asked: 16: the chat template begins with \d+ tokens"):
        written_chats(model, chatting, OWN | {"length": 20}, 0)


def test_a_turn_may_end_with_text(chatting: Any) -> None:
    chatting.chat_template = PLAIN
    model = Speaker(chatting, ["Why? [/ASK] Because.", "No end"], "It is.<e>")
    rows, dropped = written_chats(model, chatting, OWN | {"tokens": 64}, 0)
    assert users(chatting, rows) == ["Why?"]
    assert dropped["not ended"] >= 1
    assert model.asked[0][1]["stop_strings"] == ["[/ASK]"]
    assert "stop_strings" not in model.asked[-1][1]


@pytest.fixture
def chats_of(config: dict[str, Any], chatting: Any, tmp_path: Path) -> dict[str, Any]:
    """A config whose model chats: it ends a turn sooner or later."""
    made = AutoModelForCausalLM.from_pretrained(config["model"])
    made.resize_token_embeddings(len(chatting))
    end = chatting.convert_tokens_to_ids("<e>")
    with torch.no_grad():
        # a channel that is the same for all tokens, with more of it in this one's row: one token of fifteen, or so
        made.get_input_embeddings().weight[:, 0] = 1.0
        made.get_input_embeddings().weight[end, 0] = 1.45
    made.generation_config.eos_token_id = end
    folder = tmp_path / "model"
    made.save_pretrained(folder)
    chatting.save_pretrained(folder)
    change = CHANGE | {"model": str(folder), "out": str(tmp_path / "out"), "tokens": config["tokens_per_step"]}
    return checked(config | change | {"rehearsal": OWN | {"asked": 30, "length": 64, "tokens": 640}})


def test_a_model_that_has_changed_nothing_learns_nothing_of_chats(chats_of: dict[str, Any], corpus: Corpus) -> None:
    """The loss is the divergence from the stock model at answers' tokens, over the number of these."""
    model, tokenizer = load_extended(chats_of)
    windows = Windows(corpus.training, tokenizer, chats_of)
    windows.own = rehearsal_of(chats_of, corpus.training, Path(chats_of["out"]), Stock(chats_of))
    assert windows.own is not None
    assert len(windows.own) == 10
    kept = json.loads((Path(chats_of["out"]) / FILE).read_text(encoding="utf-8"))
    assert set(kept["left out"]) == {"not ended", "empty", "told before", "as in the evaluation", "too long"}
    (loss,) = train.trained(model, tokenizer, windows, chats_of, None, False, Stock(chats_of))["losses"]
    assert abs(loss) < 1e-5
    torch.manual_seed(1)
    other: Any = AutoModelForCausalLM.from_config(model.config)
    stock, _ = load_extended(chats_of)
    total, targets = 0.0, 0
    with torch.no_grad():
        for number in range(len(windows)):
            batch = windows[number]
            assert batch["distilled"]
            for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
                counted = labels != -100
                # without the padding
                end = int(counted.nonzero()[-1]) + 1
                own, told = (log_softmax(one(ids[None, :end]).logits[0], -1) for one in (other, stock))
                each = kl_div(own, told, reduction="none", log_target=True).sum(-1)
                total, targets = total + 3.0 * float(each[counted[:end]].sum()), targets + int(counted.sum())
    assert 0 < targets < chats_of["tokens_per_step"] * 0.9, "neither users' turns nor padding are counted"
    (loss,) = train.trained(other, tokenizer, windows, chats_of, None, False, Stock(chats_of))["losses"]
    assert loss == pytest.approx(total / targets, rel=1e-4)


def test_chats_may_be_learnt_as_they_are_written(chats_of: dict[str, Any], corpus: Corpus) -> None:
    """Without a teacher: the loss is that of answers' tokens."""
    made = checked(chats_of | {"rehearsal": chats_of["rehearsal"] | {"towards": "tokens"}})
    model, tokenizer = load_extended(made)
    windows = Windows(corpus.training, tokenizer, made)
    windows.own = rehearsal_of(made, corpus.training, Path(made["out"]), Stock(made))
    stock, _ = load_extended(made)
    total, targets = 0.0, 0
    with torch.no_grad():
        for number in range(len(windows)):
            batch = windows[number]
            assert "distilled" not in batch
            logits, labels = stock(batch["input_ids"]).logits, batch["labels"]
            total += 3.0 * float(cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
            targets += int((labels != -100).sum())
    (loss,) = train.trained(model, tokenizer, windows, made, None, False, Stock(made))["losses"]
    assert loss == pytest.approx(total / targets, rel=1e-4)
