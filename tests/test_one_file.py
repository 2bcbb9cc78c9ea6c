"""A method and a procedure are one new file each: it is found, listed, offered, planned, checked and documented."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import hf_longctx
import tests.contract.changes
import tests.contract.generation
import tests.contract.wrapping  # noqa: F401  (the three register their properties)
from hf_longctx import plan, registry
from hf_longctx.cli import main as cli
from tests.contract.registry import PROPERTIES, applies, same
from tests.contract.stack import parts
from tests.packaging.test_project import unlisted
from tests.planning.test_calibration import SMOLLM2
from tests.test_contract import ROWS
from tests.tiny import text, tiny, tokenizer

METHOD = '''
"""Only recent tokens."""
import dataclasses

from hf_longctx.attention.method import AttentionMethod
from hf_longctx.cache import FullLayer
from hf_longctx.ops.masks import Window


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recent(AttentionMethod):
    """Only recent tokens are seen.

    Use when: a test needs a method of one file.

    Cannot: see anything that has left the window.

    Costs: all keys are kept all the same.
    """

    name = "recent"
    summary = "only recent tokens are seen"

    size: int = 6

    def cache_layer(self, module):
        return FullLayer(self)

    def branches(self, inputs):
        return [inputs.branch(Window(self.size), inputs.keys, *inputs.true_ropes())]
'''
PROCEDURE = '''
"""Nothing but greedy decoding."""
import dataclasses

import torch

from hf_longctx.generation.procedure import Procedure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plainly(Procedure):
    """Greedy decoding, whatever the call asks for.

    Use when: a test needs a procedure of one file.

    Cannot: do anything that greedy decoding cannot.

    Costs: nothing at all beyond the stock model.
    """

    name = "plainly"
    summary = "greedy decoding"
    takes_all_of_generate = True

    steps: int = 1

    def __call__(self, model, input_ids, *args, streamer=None, tokenizer=None, generation_config=None, **kwargs):
        for _ in range(generation_config.max_new_tokens):
            next_B1 = model(input_ids).logits[:, -1:].argmax(-1)
            input_ids = torch.cat([input_ids, next_B1], 1)
            if streamer is not None:
                streamer.put(next_B1[0])
        if streamer is not None:
            streamer.end()
        return input_ids
'''


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], Any]]:
    """Puts a file into a room of the package, as if it lay there, and returns the class that is registered."""
    added = []

    def into(room: str, name: str, code: str) -> Any:
        package = importlib.import_module(f"hf_longctx.{room}")
        (tmp_path / room).mkdir()
        (tmp_path / room / f"{name}.py").write_text(code)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / room)])
        added.append((package, name))
        return hf_longctx.list_methods()[name]

    yield into
    for package, name in added:
        registry._classes.pop(name, None)
        sys.modules.pop(f"{package.__name__}.{name}", None)
        vars(package).pop(name, None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def run(*arguments: object, code: int = 0, input: str | None = None) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], input=input)
    assert result.exit_code == code, result.output
    return result.output


def test_a_method_is_one_file(put: Any, model: str, tmp_path: Path) -> None:
    cls = put("methods", "recent", METHOD)
    assert "recent  hf_longctx.Recent" in run("methods")
    (entry,) = [entry for entry in json.loads(run("methods", "--json")) if entry["name"] == "recent"]
    assert entry["settings"] == {"size": {"type": "int", "default": 6}}
    # README
    assert unlisted((Path(registry.__file__).parents[1] / "README.md").read_text()) == ["recent"]
    assert unlisted("| `recent` | – | `hf_longctx/methods/recent.py` |") == sorted({*registry.entries()} - {"recent"})
    # every command
    named = ["--method", "recent", "--set", "size=4"]
    short = ["--device", "cpu", "--max-new-tokens", "2"]
    run("generate", model, "--prompt", "w3 w4 w5 w6 w7 w8 w9", *named, *short)
    run("extend", model, *named, "--out", tmp_path / "extended")
    saved = json.loads((tmp_path / "extended" / "config.json").read_text())
    assert saved["hf_longctx"]["methods"] == [{"name": "recent", "size": 4}]
    assert "Did you mean 'recent'" in run("plan", model, "--length", "100", "--method", "recnt", code=2)
    assert "Did you mean 'size'" in run("plan", model, "--length", "9", "--method", "recent", "--set", "sise=4", code=2)
    assert "Recommended: Recent(size=4)" in run("plan", model, "--length", "100", "--memory", "4GiB", *named)
    said = run("chat", model, *named, *short, input="w3 w4\n/exit\n", code=2)
    assert "under Recent(size=4), 2 of the 2 layers" in said, "the method is on the model, and keeps too much to chat"
    (tmp_path / "text.txt").write_text("w3 w4 w5 w6 w7 w8 " * 60)
    few = ["--task-set", "n_targets=8", "--task-set", "documents=1"]
    run(
        "eval", model, "--task", "ppl", "--lengths", "64", "--window", "32", *few, "--text", tmp_path / "text.txt",
        "--out", tmp_path / "out", "--device", "cpu", *named,
    )  # fmt: skip
    # plan proposes it by itself
    found = plan(SMOLLM2, "32k", "24GiB")
    assert {option.name for option in found.options} >= {"stock", "LMInfinite()", "Recent()"}
    assert cls().apply(tiny()).method.size == 6


# the contract for it; what compares with a paper needs a reference, and the method has neither
@pytest.mark.parametrize("name", PROPERTIES)
def test_a_method_of_one_file_keeps_the_contract(put: Any, name: str) -> None:
    method = put("methods", "recent", METHOD)()
    if not applies(name, method, "llama"):
        pytest.skip("the property is not about such methods")
    PROPERTIES[name](method, "llama")


def test_a_procedure_is_one_file(put: Any, model: str, tmp_path: Path) -> None:
    cls = put("generation", "plainly", PROCEDURE)
    assert "plainly  hf_longctx.Plainly" in run("methods")
    assert unlisted((Path(registry.__file__).parents[1] / "README.md").read_text()) == ["plainly"]
    loaded, ids = tiny(), text(2, 8)
    stock = loaded.generate(ids, max_new_tokens=4, do_sample=False)
    same(loaded.generate(ids, max_new_tokens=4, custom_generate=cls()), stock)
    with cls().running(loaded) as extra:
        same(loaded.generate(ids, max_new_tokens=4, **extra), stock)
    # every command: those that change the model say what to do instead
    named = ["--method", "plainly", "--set", "steps=2"]
    ask = ["--prompt", "w3 w4 w5 w6 w7", "--device", "cpu", "--max-new-tokens", "3"]
    said = run("generate", model, *ask, *named).splitlines()[-1]
    assert said == run("generate", model, *ask).splitlines()[-1]
    run("extend", model, *named, "--out", tmp_path / "extended")
    saved = json.loads((tmp_path / "extended" / "generation_config.json").read_text())
    assert saved["plainly"] == {"name": "plainly", "steps": 2}
    assert cls.stored_in(type(loaded).from_pretrained(tmp_path / "extended").generation_config) == cls(steps=2)
    for command in (["chat", model], ["plan", model, "--length", "100"]):
        assert "--method plainly is a way to generate" in run(*command, *named, code=2)
    config = {"hf_longctx": {"version": 1, "methods": [{"name": "plainly"}]}}
    with pytest.raises(ValueError, match="Plainly is a way to generate, not a change of the model"):
        type(loaded.config)(**config)


def test_every_method_has_a_row_in_the_contract() -> None:
    methods = [row.method("llama") if callable(row.method) else row.method for row in ROWS.values()]
    kinds = {name for name, entry in registry.entries().items() if entry["kind"] == "method"}
    assert {part.name for method in methods for part in parts(method)} == kinds


def test_a_file_that_defines_nothing_of_its_name_says_so(put: Any) -> None:
    with pytest.raises(ValueError, match=r"methods\.empty: expected .* with name='empty' in a file of this"):
        put("methods", "empty", "")


def test_a_class_that_is_new_is_public(put: Any) -> None:
    assert put("methods", "recent", METHOD) is hf_longctx.Recent
