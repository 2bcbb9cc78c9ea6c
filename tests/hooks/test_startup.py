"""`import hf_longctx` waits for transformers: whichever comes first, and however, the hooks are in place in time."""

from __future__ import annotations

import importlib.abc
import importlib.util
import inspect
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_longctx
from hf_longctx import LMInfinite
from hf_longctx.hooks import startup
from hf_longctx.hooks import transformers as hooks
from hf_longctx.hooks.when_imported import WhenImported
from tests.children import python_path
from tests.tiny import logits_of, text, tiny

ROOT = Path(__file__).parents[2]
METHOD = LMInfinite(n_global=2, n_local=6)
IDS = text(2, 24)


def run(code: str, *args: object) -> str:
    """What a new process prints, which knows this checkout."""
    environment = {**os.environ, "PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, env=environment, cwd=args[0] if args else ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_alone_loads_neither_torch_nor_transformers() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'peft', 'accelerate', 'tokenizers', 'safetensors'}"
    assert run(f"import sys, hf_longctx; print({heavy} & set(sys.modules))") == "set()\n"


# how a program comes to its class of models, with hf_longctx imported on the way
ORDERS = {
    "hf_longctx, then transformers": "import hf_longctx\nfrom transformers import AutoModelForCausalLM as Model",
    "transformers, then hf_longctx": "from transformers import AutoModelForCausalLM as Model\nimport hf_longctx",
    "transformers without its models, then hf_longctx": """
import transformers, hf_longctx
assert "transformers.modeling_utils" not in sys.modules
Model = transformers.AutoModelForCausalLM
""",
    "a method, then transformers": """
from hf_longctx import LMInfinite
from transformers import LlamaForCausalLM as Model
""",
    "a model's own module": "import hf_longctx\nfrom transformers.models.llama import LlamaForCausalLM as Model",
    "by name, generation first": """
import hf_longctx, importlib
importlib.import_module("transformers.generation.utils")
importlib.import_module("transformers.cache_utils")
Model = importlib.import_module("transformers.models.llama.modeling_llama").LlamaForCausalLM
""",
    "by something in the course of transformers": """
import importlib.abc
class Plugin(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        half = sys.modules.get("transformers.modeling_utils")
        if half is not None and not hasattr(half, "PreTrainedModel"):
            sys.meta_path.remove(self)
            import hf_longctx
sys.meta_path.insert(0, Plugin())
import transformers.modeling_utils
assert "hf_longctx" in sys.modules
from transformers import LlamaForCausalLM as Model
""",
    "both at once, in threads": """
import threading
failed = []
def load(statement):
    try:
        exec(statement)
    except BaseException as error:
        failed.append((statement, error))
# one of them imports transformers: 5.24 fails where two begin to import it at once, without us as well
statements = "from transformers import LlamaForCausalLM", "import hf_longctx", "import hf_longctx, hf_longctx.cli.main"
threads = [threading.Thread(target=load, args=(statement,)) for statement in statements]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not failed, failed
from transformers import AutoModelForCausalLM as Model
""",
    "installed again": """
import hf_longctx
hf_longctx.uninstall()
assert not any(type(finder).__module__.startswith("hf_longctx") for finder in sys.meta_path)
hf_longctx.install()
import importlib.abc
import importlib.util
importlib.reload(hf_longctx)
from transformers import AutoModelForCausalLM as Model
""",
}
USE = """
import torch
from transformers import GenerationMixin, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
for owner, name in ((PreTrainedModel, "post_init"), (GenerationMixin, "_prepare_cache_for_generation")):
    assert not hasattr(getattr(owner, name).__wrapped__, "__wrapped__"), "once"
assert "hf_longctx" in ALL_ATTENTION_FUNCTIONS and "hf_longctx" in ALL_MASK_ATTENTION_FUNCTIONS
assert LlamaConfig().hf_longctx is None
try:
    LlamaConfig(hf_longctx="lm_infinite")
except ValueError:
    pass
else:
    raise AssertionError("a wrong entry is told when it is read")
model = Model.from_pretrained("model")
expected = torch.load("expected.pt")
ids = expected["ids"]
assert torch.equal(model.eval()(ids).logits, expected["logits"])
assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), expected["generated"])
assert len(hf_longctx.applied(model)) == 1
print("same", flush=True)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a keyed model, the same one as a pickle, and what it gives."""
    folder = tmp_path_factory.mktemp("saved")
    model = tiny("llama")
    METHOD.apply(model)
    model.save_pretrained(folder / "model")
    generated = model.generate(IDS, max_new_tokens=4, do_sample=False)
    torch.save({"ids": IDS, "logits": logits_of(model, IDS), "generated": generated}, folder / "expected.pt")
    (folder / "model.pickle").write_bytes(pickle.dumps(model))
    return folder


@pytest.mark.parametrize("order", list(ORDERS)[:2])
def test_a_keyed_model_is_active_whichever_is_imported_first(order: str, saved: Path) -> None:
    assert run(f"import sys\n{ORDERS[order]}\nimport hf_longctx\n{USE}", saved) == "same\n"


def test_a_keyed_model_is_active_in_every_order(saved: Path) -> None:
    """Each in a fork of a process that has imported torch alone, which is most of the time."""
    codes = {order: f"import sys\n{code}\nimport hf_longctx\n{USE}" for order, code in ORDERS.items()}
    (saved / "codes.json").write_text(json.dumps(codes))
    forks = """
import json, os, traceback
import torch
for order, code in json.load(open("codes.json")).items():
    child = os.fork()
    if not child:
        try:
            exec(code, {"__name__": "__main__"})
        except BaseException:
            print(order, traceback.format_exc(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
    assert run(forks, saved).split() == ["same"] * len(ORDERS)


def test_a_pickled_model_is_active_in_a_process_that_has_imported_nothing(saved: Path) -> None:
    code = """
import multiprocessing, pickle, sys

def check(model, queue):
    import torch
    expected = torch.load("expected.pt")
    ids = expected["ids"]
    queue.put(bool(torch.equal(model.eval()(ids).logits, expected["logits"])
                   and torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), expected["generated"])))

if __name__ == "__main__":
    with open("model.pickle", "rb") as file:
        model = pickle.load(file)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=check, args=(model, queue))
    process.start()
    print(queue.get(timeout=100))
    process.join()
    check(model, queue)
    print(queue.get(timeout=100))
"""
    (saved / "spawn.py").write_text(code)  # a child of spawn imports its parent's file
    assert run("import runpy\nrunpy.run_path('spawn.py', run_name='__main__')", saved).split() == ["True", "True"]


def test_a_stock_model_needs_none_of_our_imports(tmp_path: Path) -> None:
    code = """
import sys, hf_longctx
from transformers import LlamaConfig, LlamaForCausalLM
sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
LlamaForCausalLM(LlamaConfig(**sizes))
print("hf_longctx.patch" in sys.modules)
"""
    assert run(code) == "False\n"


def test_a_module_of_transformers_that_is_loaded_anew_is_hooked_anew() -> None:
    code = """
import hf_longctx, importlib
import transformers.generation.utils as utils
one = utils.GenerationMixin
importlib.reload(utils)
assert utils.GenerationMixin is not one
for owner in (one, utils.GenerationMixin):
    assert owner._prepare_cache_for_generation.__wrapped__.__module__ == "transformers.generation.utils"
hf_longctx.uninstall()
for owner in (one, utils.GenerationMixin):
    assert not hasattr(owner._prepare_cache_for_generation, "__wrapped__")
"""
    run(code)


def test_transformers_looks_the_same_to_those_who_inspect_it() -> None:
    code = """
import hf_longctx, importlib.util, inspect, runpy, sys
spec = importlib.util.find_spec("transformers.configuration_utils")
assert "transformers.configuration_utils" not in sys.modules, "finding is not importing"
assert "class PreTrainedConfig" in spec.loader.get_source(spec.name)
assert spec.loader.get_code(spec.name) and spec.origin.endswith("configuration_utils.py")
import transformers.modeling_utils as module
loader = importlib.machinery.SourceFileLoader
assert type(module.__loader__) is type(module.__spec__.loader) is loader
assert "class PreTrainedModel" in inspect.getsource(module)
assert inspect.getsource(module.PreTrainedModel.post_init).lstrip().startswith("def post_init")
stock = module.PreTrainedModel.post_init.__wrapped__
assert inspect.signature(module.PreTrainedModel.post_init) == inspect.signature(stock)
assert "PreTrainedConfig" in runpy.run_module("transformers.configuration_utils")
"""
    run(code)


def test_every_place_that_a_hook_is_for_exists_and_every_stand_in_has_its_function() -> None:
    for (module, owner, name), ours in startup.HOOKS.items():
        stock = getattr(getattr(importlib.import_module(module), owner), name).__wrapped__
        theirs = [p.name for p in inspect.signature(stock).parameters.values() if p.kind is not p.VAR_KEYWORD]
        given = list(inspect.signature(getattr(hooks, ours)).parameters)
        assert given[: len(theirs) + 1] == ["stock", *theirs][: len(given)] or "args" in given, ours
    for (module, registry, function), names in startup.REGISTRIES.items():
        for name, home in names.items():
            real = getattr(importlib.import_module(f"hf_longctx.{home}"), function)
            assert vars(sys.modules[module])[registry][name] is real, name


def test_what_there_is_to_say_about_methods_is_what_their_classes_say() -> None:
    from hf_longctx import registry as method_table

    assert method_table.FILE.read_text(encoding="utf-8") == method_table.text(), "run `make tables`"
    assert list(method_table.entries()) == list(hf_longctx.list_methods())
    assert json.loads(method_table.FILE.read_text(encoding="utf-8"))[0]["name"] == "code_lookup"


def test_modules_of_the_package_are_attributes_of_it_as_they_were() -> None:
    assert run("import hf_longctx; print(hf_longctx.settings.KEY, hf_longctx.hub.__name__)").split() == [
        "hf_longctx",
        "hf_longctx.hub",
    ]
    with pytest.raises(AttributeError, match="no attribute 'LMInfinit'"):
        hf_longctx.LMInfinit  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name"):
        from hf_longctx import Streaming  # noqa: F401


PACKAGES = (
    *("", "attention", "cache", "editing", "editing/graph", "generation", "generation/xl3m", "hooks", "methods", "ops"),
    *("planning", "rope", "sharing", "streaming", "text", "upstream"),
)


def test_every_module_can_be_the_first_that_is_imported() -> None:
    """Each in a fork of one process: none leans on the order in which another has imported the rest."""
    files = [file for package in PACKAGES for file in sorted((ROOT / "hf_longctx" / package).glob("*.py"))]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    assert len(names) > 60
    code = """
import importlib, os, sys, traceback
import torch, transformers.generation.utils, transformers.masking_utils, transformers.modeling_utils
for name in sys.argv[2:]:
    child = os.fork()
    if not child:
        try:
            importlib.import_module(name)
        except BaseException:
            print(name, traceback.format_exc(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
    assert run(code, ROOT, *names) == ""


# -- the finder --------------------------------------------------------------------------------------------------------
@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Watches modules of `tmp_path`, and notes those it is called for."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules, finders, called = set(sys.modules), list(sys.meta_path), []

    def on(*names: str) -> tuple[WhenImported, list[str]]:
        found = WhenImported(names, called.append)
        found.start()
        return found, called

    yield on
    sys.meta_path[:] = finders
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_a_module_is_called_for_each_time_it_has_been_executed(tmp_path: Path, watch: Any) -> None:
    (tmp_path / "mod_a.py").write_text("value = 1")
    finder, called = watch("mod_a")
    spec = importlib.util.find_spec("mod_a")
    assert spec is not None
    assert spec.loader is not None
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    assert called == [], "a copy of somebody's own is not the module"
    module = importlib.import_module("mod_a")
    assert called == ["mod_a"]
    importlib.reload(module)
    assert called == ["mod_a"] * 2
    finder.stop()
    importlib.reload(module)
    assert called == ["mod_a"] * 2
    finder.start()
    finder.start()
    assert sys.meta_path.count(finder) == 1


def test_a_half_imported_module_is_called_for_when_it_is_whole(tmp_path: Path, watch: Any) -> None:
    (tmp_path / "mod_b.py").write_text("import mod_starts\nvalue = 1")
    (tmp_path / "mod_starts.py").write_text("import sys\nsys.start_the_watch()")
    (tmp_path / "mod_later.py").write_text("")
    _, called = found = [None, None]
    sys.start_the_watch = lambda: found.__setitem__(slice(None), list(watch("mod_b")))  # type: ignore[attr-defined]
    try:
        importlib.import_module("mod_b")
    finally:
        del sys.start_the_watch  # type: ignore[attr-defined]
    _, called = found
    assert called == []
    importlib.import_module("mod_later")
    assert called == ["mod_b"]


def test_a_module_that_fails_is_not_called_for(tmp_path: Path, watch: Any) -> None:
    (tmp_path / "mod_c.py").write_text("1 / 0")
    _, called = watch("mod_c", "mod_missing")
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("mod_c")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mod_missing")
    assert called == []


def test_modules_in_a_zip_file_keep_their_loader(tmp_path: Path, watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
        file.writestr("mod_d.py", "value = 1")
        file.writestr("mod_e.py", "value = 2")
    monkeypatch.syspath_prepend(str(tmp_path / "all.zip"))
    _, called = watch("mod_d")
    one, other = importlib.import_module("mod_d"), importlib.import_module("mod_e")
    assert called == ["mod_d"]
    assert type(one.__spec__.loader) is type(other.__spec__.loader)
    assert one.__loader__ is one.__spec__.loader
    assert inspect.getsource(one).strip() == "value = 1"


def test_another_finder_that_asks_all_others_is_no_endless_loop(tmp_path: Path, watch: Any) -> None:
    class Other(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
            if name != "mod_f":
                return None
            return next(s for f in sys.meta_path if f is not self and (s := f.find_spec(name, path, target)))

    (tmp_path / "mod_f.py").write_text("value = 1")
    _, called = watch("mod_f")
    sys.meta_path.insert(0, Other())
    importlib.import_module("mod_f")
    assert set(called) == {"mod_f"}


def test_a_module_that_is_blocked_or_has_no_spec_is_left_alone(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mod_g", None)
    monkeypatch.setitem(sys.modules, "mod_h", type(sys)("mod_h"))
    _, called = watch("mod_g", "mod_h")
    assert called == ["mod_h"]
