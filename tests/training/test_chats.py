"""Assistant-only labels of chat templates of every kind: answers, each through its end token, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from hf_longctx.training.packing import PackCollator, chat_documents, pack

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "by difference": CHATML,
    "marked with the end": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    ),
    "marked before the end": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    ),
    "marked beyond the end": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{%- generation -%}"
        "{{ m.content }}<|im_end|>\n{%- endgeneration -%}{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    ),
}
MESSAGES = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "hello there"},
    {"role": "assistant", "content": "good day\n"},
    {"role": "user", "content": "and again?"},
    {"role": "assistant", "content": "good day again"},
]


def tokenizer(template: str) -> Any:
    """A token a byte; the end token is the padding token too."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|im_end|>")
    found.add_tokens([AddedToken("<|im_start|>", special=True)])  # has no name, as in Llama 3
    found.chat_template = template
    return found


def targets(made: Any, row: dict[str, list[int]]) -> list[str]:
    """The stretches of targets, as text."""
    runs: list[list[int]] = [[]]
    for label in row["labels"]:
        if label != -100:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [made.decode(run) for run in runs if run]


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_through_their_end_are_the_targets(name: str) -> None:
    made = tokenizer(TEMPLATES[name])
    (row,) = chat_documents(made, [{"messages": MESSAGES}])
    assert row["input_ids"] == made.apply_chat_template(MESSAGES)["input_ids"]
    assert targets(made, row) == ["good day\n<|im_end|>", "good day again<|im_end|>"]
    assert made.pad_token_id == made.eos_token_id


def test_every_end_is_a_target_in_the_batch() -> None:
    made = tokenizer(CHATML)
    chats = [{"messages": [*MESSAGES[1:2], {"role": "assistant", "content": "x" * n}]} for n in range(1, 13)]
    packs = pack(chat_documents(made, chats), 128)
    batch = PackCollator()([packs[n] for n in range(len(packs))])
    assert int((batch["labels"] == made.eos_token_id).sum()) == 12


def test_a_tokenizer_without_offsets() -> None:
    made = tokenizer(TEMPLATES["marked with the end"])
    slow = type("Slow", (type(made),), {"is_fast": False})
    made.__class__ = slow
    made.chat_template = (
        TEMPLATES["marked with the end"] + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (row,) = chat_documents(made, [{"messages": MESSAGES}])
    assert targets(made, row) == ["good day\n<|im_end|>", "good day again<|im_end|>"]


def test_answers_longer_than_the_pack_are_named() -> None:
    chats = [{"messages": [*MESSAGES[1:2], {"role": "assistant", "content": "x" * n}]} for n in (3, 300, 4)]
    packs = pack(chat_documents(tokenizer(CHATML), chats), 128, too_long="drop")
    assert "1 documents of 3" in packs.left_out()
    assert "dropped: numbers 1" in packs.left_out()


def test_templates_that_cannot_be_learnt_from() -> None:
    asks = "{% if add_generation_prompt %}assistant: {% endif %}"
    endless = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + asks
    with pytest.raises(ValueError, match="chat 0: the chat template ends an answer with no special token"):
        list(chat_documents(tokenizer(endless), [{"messages": MESSAGES}]))
    changing = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last or m.role == 'user' else '...' }}")
    with pytest.raises(ValueError, match="chat 0: the chat template writes message 2 otherwise when others follow"):
        list(chat_documents(tokenizer(changing), [{"messages": MESSAGES}]))
    with pytest.raises(ValueError, match="has no chat template"):
        list(chat_documents(tokenizer(""), [{"messages": MESSAGES}]))
    with pytest.raises(ValueError, match="chat 0 begins with an answer"):
        list(chat_documents(tokenizer(CHATML), [{"messages": MESSAGES[2:]}]))
    with pytest.raises(ValueError, match="chat 1 has no messages"):
        list(chat_documents(tokenizer(CHATML), [{"messages": MESSAGES}, {"text": "a"}]))
