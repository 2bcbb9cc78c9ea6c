"""Results in a card: each number is one of their files', what does not belong is refused, and push takes them along."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hf_longctx import XL3M, Giraffe, LMInfinite, RopeScaling
from hf_longctx.evaluation import evaluate
from hf_longctx.hub import write_card
from hf_longctx.hub.draft import drafted, save_for_hub
from tests.hub import validate_yaml
from tests.tiny import text, tiny, tokenizer

METHOD = LMInfinite(n_global=2, n_local=8)
COMMITTED = Path(__file__).resolve().parents[2] / "recipes/benchmarks/results"
NUMBER = re.compile(r"(?<![\w.,-])-?[\d,]+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.])")


@pytest.fixture
def dual(stock: Path, tmp_path: Path) -> Path:
    return save_for_hub(stock, tmp_path / "dual", method=METHOD).folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `hf-longctx eval` wrote of the base with the method: real files."""
    place = tmp_path_factory.mktemp("measured")
    words = place / "words.txt"
    words.write_text(" ".join(f"w{int(n)}" for n in text(1, 2000)[0]))
    model: Any = tiny()
    model.config._name_or_path = "owner/base"
    asked: dict[str, Any] = {"lengths": [32, 128], "text": str(words), "n_targets": 8, "documents": 2, "window": 64}
    return evaluate(model, tokenizer(), task="ppl", out=place / "run", method=METHOD, command="eval", **asked)


def written(folder: Path, data: dict[str, Any], name: str = "ppl.json") -> Path:
    (folder / name).write_text(json.dumps(data), encoding="utf-8")
    return folder / name


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def shown_in(section: str) -> list[float]:
    """The numbers in the cells of its tables, without the first column, which is words."""
    rows = [line.split(" | ")[1:] for line in section.splitlines() if line.startswith("| ") and "---" not in line]
    cells = [re.split(r": (?:holds|missed|not measured)", cell)[0] for row in rows[1:] for cell in row]
    return [float(found.replace(",", "")) for cell in cells for found in NUMBER.findall(cell)]


def is_rounded(shown: float, known: list[float]) -> bool:
    return any(abs(shown - one) <= max(5e-5 * abs(one), 0.5 * (abs(one) >= 1e4)) * 1.0001 for one in known)


@pytest.mark.parametrize("name", ["lm_infinite_passkey", "lm_infinite_perplexity", "fast_path_decode", "ruler"])
def test_every_number_of_a_card_is_in_its_json(dual: Path, name: str) -> None:
    data = json.loads((COMMITTED / f"{name}.json").read_text())
    write_card(dual, base_model="HuggingFaceTB/SmolLM2-135M-Instruct", results=[COMMITTED / f"{name}.json"])
    card = (dual / "README.md").read_text()
    known = list(numbers_in(data["rows"])) + [
        float(n) for row in data["rows"] for n in re.findall(r"[\d.]+", row["bar"] or "")
    ]
    shown = shown_in(card[card.index("## Measured") :])
    assert len(shown) >= len([row for row in data["rows"] if row["value"] is not None])
    assert [one for one in shown if not is_rounded(one, known)] == []
    values = [one.metric_value for one in ModelCard(card).data.eval_results]
    assert [one for one in values if not is_rounded(one, known)] == []
    assert (dual / "measured" / f"{name}.json").read_bytes() == (COMMITTED / f"{name}.json").read_bytes()
    assert "It does not record the settings of a method" in card
    assert validate_yaml.errors(card) == []


def test_rows_stay_apart_on_a_round_trip_through_huggingface_hub(dual: Path) -> None:
    """It groups by task, dataset type and config, and keeps one name of a group."""
    write_card(dual, "me/dual", base_model="a/SmolLM2-135M-Instruct", results=[COMMITTED / "lm_infinite_passkey.json"])
    rows = json.loads((COMMITTED / "lm_infinite_passkey.json").read_text())["rows"]
    text = (dual / "README.md").read_text()
    back = ModelCard(str(ModelCard(text))).data.eval_results
    assert [one.dataset_name.partition(": ")[2] for one in back] == [row["what"] for row in rows]
    assert [one.metric_value for one in back] == [1, 0.995, 0.895, 0.905, 0.935, 2.8803]
    assert {one.source_url for one in back} == {
        "https://huggingface.co/me/dual/blob/main/measured/lm_infinite_passkey.json"
    }
    assert "| 0.895 |" in text


def test_what_eval_measured_becomes_a_table_with_pictures(dual: Path, measured: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = write_card(
        dual, base_model="owner/base", license="apache-2.0", language=["en"], results=[written(tmp_path, measured)]
    )
    assert found is not None
    card = (dual / "README.md").read_text()
    assert found.files == ("measured/ppl.json", "measured/ppl-perplexity-curve.png")
    assert (dual / found.files[1]).read_bytes().startswith(b"\x89PNG")
    assert all((dual / link).is_file() for link in re.findall(r"\]\((?!https)([^)]+)\)", card))
    assert [
        one for one in shown_in(card[card.index("## Measured") :]) if not is_rounded(one, list(numbers_in(measured)))
    ] == []
    data = ModelCard(card).data
    assert [one.metric_value for one in data.eval_results] == [float(f"{row['value']:.5g}") for row in measured["rows"]]
    assert (data.license, data.language, data.base_model, data.base_model_relation) == (
        "apache-2.0",
        "en",
        "owner/base",
        "finetune",
    )
    assert "does not record" not in card
    assert validate_yaml.errors(card) == []


def test_push_takes_results_along_and_new_ones_take_their_place(
    dual: Path, measured: dict[str, Any], tmp_path: Path
) -> None:
    first = written(tmp_path, measured, "first.json")
    told: dict[str, Any] = {"about": "It was **trained**.\n\nTwice.", "limits": ["It is tiny.", "And random."]}
    write_card(dual, base_model="owner/base", license="mit", results=[first], **told)
    with drafted(dual, "you/renamed") as draft:
        card = (draft.folder / "README.md").read_text()
        assert draft.own_card
        assert "\nIt was **trained**.\n\nTwice.\n" in card
        assert "## Limits\n\n<!-- limits -->\n- It is tiny.\n- And random.\n<!-- /limits -->\n\nOf LM-Infinite" in card
        assert (draft.folder / "measured/first.json").read_bytes() == first.read_bytes()
        assert 'from_pretrained("you/renamed", trust_remote_code=True)' in card
        assert "https://huggingface.co/you/renamed/blob/main/measured/first.json" in card
        assert (ModelCard(card).data.license, ModelCard(card).data.base_model) == ("mit", "owner/base")
    assert (dual / "measured/first.json").is_file()
    write_card(dual, results=[written(tmp_path, measured, "second.json")])
    (dual / "measured/mine.txt").write_text("mine")
    assert not [path.name for path in (dual / "measured").iterdir() if path.name.startswith("first")]
    assert "### second" in (dual / "README.md").read_text()
    (dual / "README.md").write_text("# Mine\n")
    with pytest.raises(ValueError, match="hf-longctx card DIR --force"):
        save_for_hub(dual, tmp_path / "other", results=[first])
    assert not (tmp_path / "other").exists()


def test_a_file_that_is_given_twice_is_shown_once(dual: Path, measured: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    file = written(tmp_path / "run", measured, "results.json")
    found = write_card(dual, base_model="owner/base", results=[file, tmp_path / "run", tmp_path / "run/../run"])
    assert found is not None
    assert [name for name in found.files if name.endswith(".json")] == ["measured/run.json"]


@pytest.mark.parametrize("edited", [False, True], ids=["somebody's own", "edited"])
def test_files_of_a_card_that_somebody_wrote_stay_when_it_is_replaced(edited: bool, dual: Path) -> None:
    (dual / "measured").mkdir()
    for name in ("plot.png", "notes.json"):
        (dual / "measured" / name).write_text("mine")
    links = "![a plot](measured/plot.png) and [notes](measured/plot.png)\n"
    if edited:
        write_card(dual, overwrite=True)
        (dual / "README.md").write_text((dual / "README.md").read_text() + links)
    else:
        (dual / "README.md").write_text(f"# Mine\n{links}[notes](measured/notes.json)\n")
    assert write_card(dual, overwrite=True) is not None
    assert sorted(path.name for path in (dual / "measured").iterdir()) == ["notes.json", "plot.png"]


def test_places_of_a_computer_are_told(
    dual: Path, measured: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_card(dual, base_model="owner/base", results=[written(tmp_path, measured)])
    assert not caplog.records
    named = change(measured, command="eval m --text /home/me/diary.txt --out run https://x.org/home/a")
    write_card(dual, base_model="owner/base", results=[written(tmp_path, named)])
    (record,) = caplog.records
    assert record.getMessage().endswith("which is published with it: /home/me/diary.txt")


def change(data: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(data)), **fields}


def with_settings(data: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return change(data, settings={**data["settings"], **fields})


WRONG: dict[str, tuple[Any, str]] = {
    "no commit": (lambda d: change(d, commit=""), "does not say its commit"),
    "no hardware": (lambda d: change(d, hardware="unknown"), "does not say its hardware"),
    "no rows": (lambda d: change(d, rows=[]), "does not say its rows"),
    "no model": (lambda d: change(d, model=3), 'has no text in "model"'),
    "NaN": (lambda d: change(d, rows=[{**d["rows"][0], "value": float("nan")}]), r"not finite: rows\[1\].value is nan"),
    "infinite": (lambda d: change(d, rows=[{**d["rows"][0], "detail": {"a": [1e999]}}]), "not finite"),
    "a text as value": (lambda d: change(d, rows=[{"what": "a", "value": "9"}]), "has no number in"),
    "another model": (lambda d: change(d, model="owner/other"), "has results of 'owner/other'"),
    "another owner": (lambda d: change(d, model="other/base"), "has results of 'other/base'"),
    "another window": (
        lambda d: with_settings(d, method={**METHOD.spec(), "n_local": 16}),
        r"results of LMInfinite\(n_global=2, n_local=16.*this checkpoint has LMInfinite\(n_global=2, n_local=8",
    ),
    "another method": (lambda d: with_settings(d, method=Giraffe().spec()), "this checkpoint has LMInfinite"),
    "the stock model": (
        lambda d: with_settings(d, method=None, configurations=["stock"]),
        "results of the model as it is; this checkpoint has LMInfinite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_results_that_do_not_belong_there_are_refused(
    name: str, dual: Path, measured: dict[str, Any], tmp_path: Path
) -> None:
    alter, says = WRONG[name]
    before = {path: path.read_bytes() for path in dual.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=says):
        write_card(dual, base_model="owner/base", results=[written(tmp_path, alter(measured))])
    assert {path: path.read_bytes() for path in dual.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_unknown_origin_needs_its_base(dual: Path, measured: dict[str, Any], tmp_path: Path) -> None:
    file = written(tmp_path, measured)
    with pytest.raises(ValueError, match=r"which model it was made from is not known.*--base-model"):
        write_card(dual, results=[file])
    for model in ("dual", "owner/base@0123abc", "base (Q4_1, dequantised), bfloat16"):
        assert write_card(dual, base_model="owner/base", results=[written(tmp_path, change(measured, model=model))])


def test_of_a_model_measured_as_it_is_the_value_is_its_own(
    dual: Path, measured: dict[str, Any], tmp_path: Path
) -> None:
    """`eval` of a model that carries a method: the last configuration is stock on its last tokens."""
    names = {"stock": "as loaded", "LMInfinite": "last 64 tokens"}
    rows = [{**row, "value": 9.0, "beside": {"as loaded": 7.0 + n}} for n, row in enumerate(measured["rows"])]
    own = with_settings(measured, method=None, configurations=list(names.values())) | {"rows": rows}
    with pytest.raises(ValueError, match="has results of 'owner/base'"):  # the base as it is
        write_card(dual, base_model="owner/base", results=[written(tmp_path, own)])
    write_card(dual, base_model="owner/base", results=[written(tmp_path, change(own, model="dual"))])
    assert [one.metric_value for one in ModelCard.load(dual / "README.md").data.eval_results] == [7.0, 8.0]


def test_of_a_base_measured_as_it_is_nothing_is_shown(stock: Path, measured: dict[str, Any], tmp_path: Path) -> None:
    folder = save_for_hub(stock, tmp_path / "native", method=RopeScaling(type="yarn", factor=4)).folder
    file = written(tmp_path, with_settings(measured, method=None, configurations=["stock"]))
    with pytest.raises(ValueError, match="has results of 'owner/base'; this checkpoint is 'native'"):
        write_card(folder, base_model="owner/base", results=[file])
    with pytest.raises(ValueError, match="has results of 'owner/base'"):
        save_for_hub(stock, tmp_path / "other", method=RopeScaling(type="ntk", factor=4), results=[file])


def test_results_that_are_gone(
    dual: Path, measured: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_card(dual, base_model="owner/base", results=[written(tmp_path, measured)])
    (dual / "measured/ppl.json").unlink()
    assert write_card(dual) is not None
    assert "the new card is without it" in caplog.text
    assert "Not measured" in (dual / "README.md").read_text()
    assert not (dual / "measured").exists()


@pytest.mark.parametrize("method", [RopeScaling(type="yarn", factor=4), Giraffe(), RopeScaling(type="ntk", factor=4)])
def test_native_settings_are_compared_with_what_the_config_says(
    method: Any, stock: Path, measured: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_for_hub(stock, tmp_path / "native", method=method).folder
    own = with_settings(measured, method=method.spec())
    assert write_card(folder, base_model="owner/base", results=[written(tmp_path, own)])
    assert "from its page in hf_longctx:" in (folder / "README.md").read_text()  # of a method that left only numbers
    other = with_settings(measured, method=RopeScaling(type="yarn", factor=2).spec())
    with pytest.raises(ValueError, match="in this checkpoint's rope_parameters"):
        write_card(folder, base_model="owner/base", results=[written(tmp_path, other)])


def test_results_of_a_way_to_generate(stock: Path, measured: dict[str, Any], tmp_path: Path) -> None:
    procedure = XL3M(segment=16, overlap=4)
    folder = save_for_hub(stock, tmp_path / "xl3m", method=procedure).folder
    own = with_settings(measured, method=procedure.spec())
    assert write_card(folder, base_model="owner/base", results=[written(tmp_path, own)])
    with pytest.raises(ValueError, match="this checkpoint has XL3M"):
        write_card(folder, results=[written(tmp_path, measured)])
