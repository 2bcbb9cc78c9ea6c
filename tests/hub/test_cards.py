"""What a card says of settings, tokenizers and adapters, and which cards count as not written by anyone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hf_longctx import XL3M, LMInfinite, RopeScaling, StreamingLLM
from hf_longctx.hub import check, write_card
from hf_longctx.hub.card import is_ours_or_blank
from hf_longctx.hub.card.languages import LANGUAGES
from hf_longctx.hub.card.licenses import LICENSES
from hf_longctx.hub.card.limits import limits_of
from hf_longctx.hub.draft import drafted, save_for_hub
from tests.hub import validate_yaml
from tests.tiny import tiny, tokenizer

PAGES = Path(__file__).resolve().parents[2] / "model_cards"

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


TIERS: dict[str, dict[str, Any]] = {
    "stock": {},
    "native": {"method": RopeScaling(type="yarn", factor=4)},
    "dual": {"method": METHOD},
    "plugin": {"method": METHOD, "plugin": True},
    "xl3m": {"method": XL3M(segment=16, overlap=4)},
}


@pytest.mark.parametrize("tier", TIERS)
def test_the_lines_of_a_card_run_as_pasted(
    tier: str, stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.cli.test_documented import COMMANDS, mentioned

    folder = save_for_hub(stock, tmp_path / "made", base_model="owner/base", **TIERS[tier]).folder
    card = (folder / "README.md").read_text()
    assert validate_yaml.errors(card) == []
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == (1 if tier in ("stock", "native", "xl3m") else 2)  # with hf_longctx, and without
    for code in blocks:
        exec(code.replace("Once upon a time", "w3 w4 w5 w6"), {})
    assert len(capsys.readouterr().out.split()) >= 20
    for command in ("generate", "serve"):
        (words,) = [words for words in mentioned(card) if words[:2] == (command, "made")]
        options = {option for one in COMMANDS[command,].params for option in one.opts}
        assert {word for word in words if word.startswith("--")} <= options


def test_an_adapter(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter")
    assert write_card(folder, "you/adapter", license="mit") is not None
    card = (folder / "README.md").read_text()
    data = ModelCard(card).data
    assert (data.base_model, data.base_model_relation, data.library_name) == ("owner/base", "adapter", "peft")
    assert "An adapter is not served" in card
    assert validate_yaml.errors(card) == []


def test_limits_are_those_of_the_methods_own_pages(stock: Path, tmp_path: Path) -> None:
    folder = save_for_hub(stock, tmp_path / "streaming", method=StreamingLLM()).folder
    card = (folder / "README.md").read_text()
    page = (PAGES / "streaming_llm.md").read_text()
    assert (
        card[card.index("- Nothing that has left") : card.index("<!--")]
        == page[page.index("- Nothing that has left") :]
    )
    for path in PAGES.glob("*.md"):
        if "## Limits" in path.read_text() and path.stem in ("giraffe", "rope_scaling", "lm_infinite", "xl3m"):
            title, text = limits_of(path.stem)
            assert path.read_text().startswith(f"# {title}\n")
            assert not re.search(r"\]\((?!https)", text), "such a link leads nowhere on the Hub"
    assert "`docs/composition.md` of hf_longctx" in limits_of("giraffe")[1]
    assert limits_of("position_free") == ("PositionFree", "- It cannot read further than the model does.")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"license": "apache2"}, "the Hub has no such licence. Did you mean 'apache-2.0'"),
        ({"license": "my own"}, "give 'other', and put its text into the folder as LICENSE"),
        ({"language": ["English"]}, "language='English': the Hub has no such language. Expected a code of ISO 639"),
        ({"language": ["en", "xx"]}, "language='xx': the Hub has no such language"),
        ({"language": ["EN"]}, "Did you mean 'en'?"),
        ({"language": ["pt_BR"]}, "Did you mean 'pt-br'?"),
        ({"language": ["en, de"]}, "several languages are given one by one"),
        ({"language": [""]}, "language='': the Hub has no such language"),
        ({"base_model": "/models/base"}, "expected the Hub id of a model"),
        ({"results": ["none.json"]}, "there is no such file of results"),
    ],
)
def test_what_the_hub_does_not_know_is_refused(given: dict[str, Any], says: str, stock: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        write_card(stock, **given)
    assert not (stock / "README.md").exists()


def test_languages_that_the_hub_knows_are_taken(stock: Path) -> None:
    assert len(LANGUAGES) == 184  # as many as ISO 639-1 has, with the withdrawn sh
    assert write_card(stock, language=["en", "yue", "zh-hant", "code", "multilingual", "no"])
    assert not validate_yaml.errors((stock / "README.md").read_text())


def test_a_language_of_an_earlier_card_that_the_hub_refuses_is_left_out(stock: Path) -> None:
    mine = "---\nlanguage:\n- zh-CN\n- xx\n- no\n- de\n---\n# Mine\n"
    (stock / "README.md").write_text(mine)
    written = write_card(stock, overwrite=True)
    assert written
    assert written.facts.language == ("no", "de")  # YAML reads no as false
    (stock / "README.md").write_text("---\nlanguage: no\n---\n# Mine\n")
    written = write_card(stock, overwrite=True)
    assert written
    assert written.facts.language == ("no",)


def test_every_licence_of_the_hub_is_known() -> None:
    assert set(LICENSES) == validate_yaml.LICENSES


def test_licence_and_languages_are_those_of_the_base_where_its_card_can_be_had(
    stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "README.md"
    theirs.write_text("---\nlicense: llama3.2\nlanguage: [en, de]\ntags: [x]\n---\n# Base\n")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: str(theirs))
    found = write_card(stock, base_model="owner/base")
    assert found is not None
    assert (found.facts.license, found.facts.language) == ("llama3.2", ("en", "de"))
    theirs.write_text("---\nlicense: no such\n---\n")
    found = write_card(stock)  # kept from the card before
    assert found is not None
    assert (found.facts.license, found.facts.base_model) == ("llama3.2", "owner/base")
    assert write_card(stock, license="gemma", language=["fr"])
    data = ModelCard.load(stock / "README.md").data
    assert (data.license, data.language, data.base_model) == ("gemma", "fr", "owner/base")


def test_a_card_of_somebody_stays_until_it_is_to_be_replaced_and_its_metadata_are_kept(stock: Path) -> None:
    mine = "---\nlicense: cc-by-4.0\nlanguage: en\nbase_model: owner/base\n---\n# Mine\n"
    (stock / "README.md").write_text(mine)
    assert write_card(stock, license="mit") is None
    assert (stock / "README.md").read_text() == mine
    assert write_card(stock, overwrite=True) is not None
    data = ModelCard.load(stock / "README.md").data
    assert (data.license, data.language, data.base_model) == ("cc-by-4.0", "en", "owner/base")


def test_the_stand_in_of_the_hub_refuses_what_it_should() -> None:
    index = {"name": "a", "results": [{"task": {"type": "t"}, "dataset": {"type": "d", "name": "n"}, "metrics": []}]}
    for yaml, says in (
        ("license: my own", '"license" must be one of the list'),
        ("licence: mit", '"licence" is not allowed'),
        ("base_model: a/b/c", "is not a model id"),
        ("base_model_relation: child", '"base_model_relation" must be'),
        ("language: English", '"language"'),
        (f"tags: [{'a' * 300}]", "is too long"),
        (f"model-index: [{index}]", 'metrics" is required'),
    ):
        assert any(says in error for error in validate_yaml.errors(f"---\n{yaml}\n---\n# a\n")), yaml
