"""`custom_generate="a folder or an id"`: what hf_longctx writes for it does as the procedure itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import GenerationConfig, dynamic_module_utils

from hf_longctx import XL3M, LMInfinite, ShareBeginning, registry, share_beginning
from hf_longctx.hub import push_generate, write_generate
from hf_longctx.upstream.installing import INSTALL
from tests.children import python_path
from tests.generation.xl3m.test_xl3m import Heard, of_bytes
from tests.test_one_file import PROCEDURE, put  # noqa: F401  (a fixture)
from tests.tiny import PAD, text, tiny, tokenizer

WINDOW = 96
SMALL = XL3M(segment=16, overlap=4, key_context=40)
GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(autouse=True)
def modules_are_cached_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.fixture
def model() -> Any:
    return tiny(max_position_embeddings=WINDOW)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(write_generate(tmp_path / "xl3m", SMALL))


def by_id(model: Any, ids: Any, folder: str, **given: Any) -> Any:
    return model.generate(ids, custom_generate=folder, trust_remote_code=True, **{**GREEDY, **given})


@pytest.mark.floor
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_return_sequences": 3, "do_sample": True},
        {"num_beams": 3, "num_return_sequences": 2},
        {"repetition_penalty": 1.5, "return_dict_in_generate": True, "output_scores": True},
    ],
    ids=str,
)
def test_tokens_are_those_of_the_callable(model: Any, folder: str, how: dict[str, Any]) -> None:
    ids, given = text(1, 400, seed=3), {"question": 6, "return_segments": True, **GREEDY, **how}
    torch.manual_seed(1)
    wanted, (chosen,) = model.generate(ids, custom_generate=SMALL, **given)
    torch.manual_seed(1)
    output, (found,) = by_id(model, ids, folder, **given)
    assert found.kept == chosen.kept
    assert len(found.kept) > 1
    assert torch.equal(getattr(output, "sequences", output), getattr(wanted, "sequences", wanted))


@pytest.mark.floor
def test_a_prompt_that_fits_is_stocks(model: Any, folder: str) -> None:
    ids = text(2, 6)
    stock = model.generate(ids, **GREEDY)
    assert torch.equal(by_id(model, ids, folder), stock)
    named = model.generate(input_ids=ids, custom_generate=folder, trust_remote_code=True, **GREEDY)
    assert torch.equal(named, stock)


@pytest.mark.floor
def test_streamer_and_stop_strings_reach_it(folder: str) -> None:
    model, made, ids = tiny(max_position_embeddings=WINDOW, vocab_size=256), of_bytes(), text(1, 400, seed=3)
    model.generation_config.pad_token_id = PAD
    heard = Heard()
    plain = by_id(model, ids, folder, question=6, streamer=heard)
    assert heard.ended
    assert [token for tokens in heard.put_ for token in tokens] == plain[0].tolist()
    stop = made.decode(plain[0, 402])
    stopped = by_id(model, ids, folder, question=6, stop_strings=[stop], tokenizer=made)
    assert stopped.shape[1] <= 403
    assert torch.equal(stopped, plain[:, : stopped.shape[1]])


def test_words_of_a_question_and_a_document_reach_it(model: Any, folder: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(" ".join(f"w{3 + i * 7 % 50}" for i in range(200)))
    for given in ({"question": "w9 w10"}, {"question": 2, "document": tmp_path / "text.txt"}):
        ids = torch.cat([text(1, 200), torch.tensor([[9, 10]])], 1) if "document" not in given else text(1, 4)
        wanted = model.generate(ids, custom_generate=SMALL, tokenizer=tokenizer(), **given, **GREEDY)
        assert torch.equal(by_id(model, ids, folder, tokenizer=tokenizer(), **given), wanted)


def test_share_beginning_by_id(model: Any, tmp_path: Path) -> None:
    folder, how = str(write_generate(tmp_path / "share", ShareBeginning())), {"num_return_sequences": 3, **GREEDY}
    how["do_sample"] = True
    outputs = []
    for chosen in (share_beginning, folder):
        torch.manual_seed(1)
        outputs.append(model.generate(text(1, 30), custom_generate=chosen, trust_remote_code=True, **how))
    assert torch.equal(*outputs)
    with pytest.raises(ValueError, match="share_beginning: no setting 'n'"):
        by_id(model, text(1, 30), folder, share_beginning={"n": 1})
    assert "`share_beginning` has no settings" in (tmp_path / "share" / "README.md").read_text()


def test_settings_of_the_call_come_before_the_models_and_those_before_the_pushed(model: Any, folder: str) -> None:
    ids = text(1, 400, seed=3)

    def lengths(**given: Any) -> set[int]:
        _, (found,) = by_id(model, ids, folder, question=6, return_segments=True, **given)
        return {one.stop - one.start for one in found.kept}

    assert lengths() == {16}
    assert lengths(xl3m={"segment": 12}) == {12}
    XL3M(segment=20, overlap=4, key_context=40).store_(model)
    assert lengths() == {20}
    assert lengths(xl3m={"segment": 12}) == {12}
    own = GenerationConfig(xl3m=XL3M(segment=8, overlap=2, key_context=40).spec())
    assert lengths(generation_config=own) == {8}
    assert lengths(generation_config=GenerationConfig()) == {20}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"segmnt": 3}, "xl3m: no setting 'segmnt'. Did you mean 'segment'"),
        ({"name": "lm_infinite"}, "xl3m: no setting 'name'"),
        ({"segment": "many"}, "segment='many' is str, expected int"),
        (["segment"], r"xl3m=\['segment'\]: expected its settings, such as xl3m=\{'segment': 16\}"),
    ],
)
def test_settings_of_the_call_that_cannot_be(model: Any, folder: str, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_id(model, text(1, 400), folder, xl3m=given)


def test_what_says_where_it_comes_from_is_not_taken_for_the_models(model: Any, folder: str) -> None:
    ids = text(1, 300)
    wanted = by_id(model, ids, folder, question=6)
    assert torch.equal(by_id(model, ids, folder, question=6, revision="main", token=False), wanted)


def test_without_trust_it_is_not_run(model: Any, folder: str) -> None:
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        model.generate(text(1, 9), custom_generate=folder, trust_remote_code=False, **GREEDY)


def test_a_model_with_a_method(model: Any, folder: str) -> None:
    ids = text(1, 300)
    with LMInfinite(n_global=2, n_local=8).on(model) as windowed:
        wanted = windowed.generate(ids, custom_generate=SMALL, question=6, **GREEDY)
        assert torch.equal(by_id(windowed, ids, folder, question=6), wanted)


def test_a_third_procedure_needs_no_code(put: Any, model: Any, tmp_path: Path) -> None:  # noqa: F811
    made = put("generation", "plainly", PROCEDURE)
    folder = str(write_generate(tmp_path / "plainly", made(steps=2)))
    assert torch.equal(by_id(model, text(1, 9), folder, plainly={"steps": 1}), model.generate(text(1, 9), **GREEDY))
    with pytest.raises(ValueError, match="plainly: no setting 'stepz'"):
        by_id(model, text(1, 9), folder, plainly={"stepz": 1})


def test_a_call_without_the_package_says_how_to_install_it(folder: str, tmp_path: Path) -> None:
    """In a process of its own, from which hf_longctx is hidden; not in transformers' words, which name no such line."""
    code = f"""
import sys
import tests.without_package
from tests.tiny import text, tiny
assert "hf_longctx" not in sys.modules
try:
    tiny().generate(text(1, 9), custom_generate={folder!r}, trust_remote_code=True, max_new_tokens=2)
except ImportError as error:
    print(error)
try:
    tiny().generate(text(1, 9), custom_generate={folder!r}, max_new_tokens=2)
except ValueError as error:
    print()  # after transformers' question
    print("trust_remote_code=True" in str(error))
"""
    environment = {**os.environ, "PYTHONPATH": python_path(), "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    said = [line for line in done.stdout.splitlines() if "you/xl3m" in line or line == "True"]
    assert said == [f"custom_generate='you/xl3m' needs the package hf_longctx. Run {INSTALL}.", "True"], done.stderr


def test_the_card_is_one_and_its_lines_run_as_pasted(model: Any, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    card = ModelCard.load(Path(folder) / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.tags == ["custom_generate", "hf_longctx", "long-context", "xl3m"]
    assert INSTALL in card.text
    assert '"segment": 16' in card.text
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda name: model)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda name: tokenizer())
    names: dict[str, Any] = {}
    exec(code.replace("you/xl3m", folder).replace("Once upon a time, there was a river.", "w3 w4 w5"), names)
    assert names["output"].shape == (1, 43)
    own = re.search(r"Its own arguments of `generate` are (.*?)\. All", card.text)
    assert own
    assert own[1].startswith("`question`, `head`, `document`")
    assert "tokenizer" not in own[1]


def test_requirements_are_those_that_transformers_can_check(folder: str) -> None:
    """And hf_longctx is none of them: a checkout that is on the path has no metadata."""
    dynamic_module_utils.check_python_requirements(folder, requirements_file="custom_generate/requirements.txt")
    lines = (Path(folder) / "custom_generate" / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["transformers>=5.17"]


def test_folders_and_procedures_that_cannot_be(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"holds a model, where custom_generate/ would replace every `generate`"):
        write_generate(tmp_path / "model", SMALL, overwrite=True)
    write_generate(tmp_path / "again", SMALL)
    with pytest.raises(ValueError, match="is not empty"):
        write_generate(tmp_path / "again", SMALL)
    write_generate(tmp_path / "again", XL3M(), overwrite=True, repo_id="me/mine")
    written = tmp_path / "again" / "custom_generate" / "generate.py"
    assert "'segment': 256" in written.read_text()
    assert "custom_generate='me/mine'" in written.read_text()
    assert sorted(path.name for path in written.parent.iterdir()) == ["generate.py", "requirements.txt"]
    for wrong in (XL3M, "xl3m", LMInfinite(n_local=8)):
        with pytest.raises(ValueError, match="expected a procedure with its settings, such as XL3M"):
            write_generate(tmp_path / "new", wrong)  # type: ignore[arg-type]
    monkeypatch.setattr(registry, "_classes", {**registry._classes})
    alien = type("Alien", (XL3M,), {"name": "alien"})
    with pytest.raises(ValueError, match="Alien is not part of hf_longctx"):
        write_generate(tmp_path / "new", alien())
    for name in ("a b/c", "a/b'\nimport os\n'"):
        with pytest.raises(ValueError, match="Repo id must"):
            write_generate(tmp_path / "new", SMALL, repo_id=name)
    assert not (tmp_path / "new" / "custom_generate").exists()


def test_an_id_without_an_owner_is_refused() -> None:
    with pytest.raises(ValueError, match="repo_id='xl3m': expected owner/name"):
        push_generate("xl3m", SMALL)
