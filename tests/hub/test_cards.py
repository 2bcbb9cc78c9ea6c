"""What a card says of settings, tokenizers and adapters, and which cards count as not written by anyone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_longctx import XL3M, LMInfinite
from hf_longctx.hub import check
from hf_longctx.hub.card import is_ours_or_blank
from hf_longctx.hub.draft import drafted, save_for_hub
from tests.tiny import tiny, tokenizer

METHOD = LMInfinite(n_global=2, n_local=8)


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    tiny().save_pretrained(tmp_path / "stock")
    tokenizer().save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


def test_settings_of_a_procedure_are_named_with_the_call_that_uses_them(stock: Path, tmp_path: Path) -> None:
    procedure = XL3M(segment=16, overlap=4)
    draft = save_for_hub(stock, tmp_path / "xl3m", method=procedure)
    text = (draft.folder / "README.md").read_text()
    for line in (repr(procedure), "import hf_longctx", "custom_generate=hf_longctx.xl3m", "pip install .", "- xl3m"):
        assert line in text, line
    assert "transformers loads it as it is" not in text
    assert check(draft.folder).methods == (repr(procedure),)
    assert any("custom_generate=hf_longctx.xl3m" in note for note in draft.notes)


@pytest.mark.parametrize("base", ["a b", "./base", "a/b/c", "", "https://huggingface.co/a/b"])
def test_a_base_that_is_no_hub_id(stock: Path, tmp_path: Path, base: str) -> None:
    with pytest.raises(ValueError, match="expected the Hub id of a model"):
        save_for_hub(stock, tmp_path / "out", base_model=base)


def test_a_model_without_a_tokenizer(stock: Path, tmp_path: Path) -> None:
    for file in stock.glob("tokenizer*"):
        file.unlink()
    draft = save_for_hub(stock, tmp_path / "out")
    assert "AutoTokenizer" not in (draft.folder / "README.md").read_text()
    assert any(note.startswith("no tokenizer") for note in draft.notes)


def test_files_of_a_processor_come_with_a_model_that_gets_a_method(stock: Path, tmp_path: Path) -> None:
    (stock / "preprocessor_config.json").write_text('{"image_processor_type": "Gemma3ImageProcessor"}')
    folder = save_for_hub(stock, tmp_path / "out", method=METHOD).folder
    assert (folder / "preprocessor_config.json").read_bytes() == (stock / "preprocessor_config.json").read_bytes()


def adapter(folder: Path) -> Path:
    peft: Any = pytest.importorskip("peft")
    with METHOD.on(tiny()) as model:
        model.name_or_path = "owner/base"
        peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    return folder


def test_the_blank_card_of_peft_makes_way_and_one_with_words_stays(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter")
    blank = (folder / "README.md").read_text()
    assert "[More Information Needed]" in blank
    with drafted(folder, "you/adapter") as draft:
        text = (draft.folder / "README.md").read_text()
        assert draft.own_card
        assert repr(METHOD) in text
        assert 'AutoTokenizer.from_pretrained("owner/base")' in text  # it has none of its own
    assert (folder / "README.md").read_text() == blank
    for mine in (blank.replace("Model Card for Model ID", "Mine"), blank + "\nMy words.\n", "# Mine\n", ""):
        assert not is_ours_or_blank(mine)
