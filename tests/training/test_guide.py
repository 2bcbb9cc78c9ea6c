"""The lines of docs/packing.md run as they stand, on a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from hf_longctx.training.packing import PackCollator, pack
from tests.tiny import tiny
from tests.training.test_chats import CHATML, MESSAGES
from tests.training.test_chats import tokenizer as byte_tokenizer

GUIDE = Path(__file__).parents[2] / "docs" / "packing.md"
SMALL = {"8192": "128", "256": "16", "65536": "256", "cycles=8": "cycles=2"}


def block(number: int) -> str:
    code = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)[number]
    for size, small in SMALL.items():
        code = code.replace(size, small)
    return code


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    args = TrainingArguments("out", max_steps=2, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True)
    documents = [[3 + (n * i) % 50 for i in range(100 * n)] for n in range(1, 7)]
    return {"model": tiny("llama"), "args": args, "documents": documents, "collator": PackCollator()}


def test_packs(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(block(0), names)
    assert "6 documents: " in capsys.readouterr().out


def test_packs_for_trl(names: dict[str, Any]) -> None:
    pytest.importorskip("trl")
    from tests.parallel.test_trl import tokenizer

    names |= {"packs": pack(names["documents"], 600), "tokenizer": tokenizer()}
    # TRL asks for bfloat16, which transformers takes for a GPU
    small = "padding_free=True, use_cpu=True, bf16=False, max_steps=1, report_to=[]"
    exec(block(1).replace("padding_free=True", small), names)


def test_chats(names: dict[str, Any]) -> None:
    answers = ("good day", "a long answer, which does not fit " * 9)
    chats = [{"messages": [MESSAGES[1], {"role": "assistant", "content": answer}]} for answer in answers]
    Path("chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    exec(block(2), names := names | {"tokenizer": byte_tokenizer(CHATML)})
    assert len(names["packs"]) == 1
    assert "were dropped: numbers 1" in names["packs"].left_out()


def test_weights(names: dict[str, Any]) -> None:
    exec(block(3), names | {"packs": pack(names["documents"], 600)})


def test_lengths(names: dict[str, Any]) -> None:
    exec(block(4), names)
    assert max(names["pieces"].sizes) == 128


def test_repeats(names: dict[str, Any]) -> None:
    paragraph = "This paragraph has more than forty characters in it."
    names |= {"held_back": {"a": f"{paragraph}\n\nalone"}, "training": {"b": f"{paragraph}\n\nelsewhere"}}
    exec(block(5), names := names | {"tokenizer": byte_tokenizer(CHATML)})
    assert names["texts"] == [f"{paragraph}\n\nalone", "elsewhere"]
    assert names["shares"] == [0.0]
