"""`modeling_hf_longctx.py`: which text is ours, and what it says where hf_longctx cannot give the class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from hf_longctx.hub import shim
from hf_longctx.upstream.installing import INSTALL
from tests.hooks.test_startup import run
from tests.models.conftest import Folders


def test_the_text_is_ours_with_any_command_that_installs() -> None:
    text = shim.text()
    assert text.count(INSTALL) == 1
    assert shim.is_unchanged(text)
    assert shim.is_unchanged(text.replace(INSTALL, "pip install hf-longctx"))
    compile(text, shim.FILE, "exec")


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text + "import os\n",
        lambda text: "import os\n" + text,
        lambda text: text.replace(INSTALL, 'x"); import os; print("'),
        lambda text: text.replace(INSTALL, "{__import__('os')}"),
        lambda text: text.replace(INSTALL, "x\nimport os"),
        lambda text: text.replace(INSTALL, "x\\nimport os"),
        lambda text: text.replace("getattr(models, name)", "getattr(models, name)()"),
        lambda text: text.replace("\n\n\n", "\n\n"),
        lambda text: "",
    ],
)
def test_an_edited_text_is_not_ours(edit: object) -> None:
    assert callable(edit)
    assert not shim.is_unchanged(edit(shim.text()))


def test_whose_entry_it_is() -> None:
    ours = ["modeling_hf_longctx.LongCtxLlamaModel", "someone/model--modeling_hf_longctx.LongCtxLlamaModel"]
    others = ["modeling_other.Model", ["tokenization.Slow", None], "my_modeling_hf_longctx.Model", None, 3]
    assert all(shim.is_ours(place) for place in ours)
    assert not any(shim.is_ours(place) for place in others)
    assert shim.without_ours(dict(enumerate([*ours, *others]))) == dict(enumerate(others, len(ours)))
    assert shim.without_ours(None) == {}


def test_the_classes_of_an_architecture() -> None:
    from transformers import FunnelConfig

    assert shim.auto_map(FunnelConfig, ["FunnelBaseModel"])["AutoModel"].endswith(".LongCtxFunnelBaseModel")
    assert shim.auto_map(FunnelConfig, [])["AutoModel"].endswith(".LongCtxFunnelModel")
    assert shim.auto_map(LlamaConfig, [])["AutoModelForCausalLM"] == "modeling_hf_longctx.LongCtxLlamaForCausalLM"
    assert shim.class_name("LongCtxLlamaModel") == shim.class_name("LlamaModel") == "LongCtxLlamaModel"


def test_folders_that_nobody_here_wrote(tmp_path: Path) -> None:
    """No config, a model type that transformers does not have, no `architectures`: left as they are."""
    shim.finish(tmp_path)
    assert list(tmp_path.iterdir()) == []
    for config in ({"model_type": "mine", "hf_longctx": {"version": 1, "methods": []}}, {"model_type": "llama"}, {}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        shim.finish(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text()) == config
        assert not (tmp_path / shim.FILE).exists()


# what a process does before it loads, with `where` as an empty folder on its path
WITHOUT = "import tests.without_package\n"
OLDER = """
import pathlib
pathlib.Path("older/hf_longctx").mkdir(parents=True)
pathlib.Path("older/hf_longctx/__init__.py").write_text("")
sys.path.insert(0, "older")
"""
LOAD = """
from transformers import AutoModelForCausalLM
assert type(AutoModelForCausalLM.from_pretrained("dual")).__name__ == "LlamaForCausalLM"
try:
    AutoModelForCausalLM.from_pretrained("dual", trust_remote_code=True)
except ImportError as error:
    print(str(error))
"""


@pytest.mark.parametrize(
    ("before", "reason"),
    [(WITHOUT, "No module named 'hf_longctx'"), (OLDER, "cannot import name 'models' from 'hf_longctx'")],
    ids=["without hf_longctx", "an older hf_longctx"],
)
def test_one_line_where_the_class_cannot_come(before: str, reason: str, folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "dual").symlink_to(folders.dual)
    said = run(f"import sys\n{before}{LOAD}", tmp_path)
    assert said.count("\n") == 1, "one line"
    assert said.startswith("This model reads long texts through hf_longctx, which cannot be imported (" + reason)
    assert f"To install it: {INSTALL}. Or load the model without trust_remote_code=True" in said
