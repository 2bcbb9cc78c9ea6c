"""What `hf-longctx doctor` says of this process, of others' code in it, and of a model; and what it never says."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from transformers import GenerationMixin, PreTrainedConfig
from typer.testing import CliRunner

import hf_longctx
from hf_longctx import LMInfinite
from hf_longctx.cli import main as cli
from hf_longctx.doctor import examine, ledger
from hf_longctx.doctor import examine as examining
from hf_longctx.doctor.hooked import hooks
from hf_longctx.doctor.machine import hub, kernels
from hf_longctx.doctor.releases import releases, self_check
from hf_longctx.hub import save
from hf_longctx.storage.secrets import anonymous
from hf_longctx.upstream import Shim, caches, versions
from hf_longctx.upstream.ledger import Defect
from tests.children import python_path
from tests.tiny import tiny, tokenizer

TOKEN = "hf_" + "a" * 34


@pytest.fixture(scope="module")
def dual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client x") / "model"
    model = tiny("llama")
    LMInfinite(n_local=16).apply(model)
    save(model, tokenizer(), folder)
    return folder


def said(found: Iterator[Any]) -> dict[str, str]:
    """Topics and texts; those of one topic in one text."""
    texts: dict[str, str] = {}
    for one in found:
        wrong = "WRONG " if one.wrong else ""
        texts[one.topic] = "\n".join(filter(None, [texts.get(one.topic), wrong + one.text]))
    return texts


def test_this_machine_is_fine() -> None:
    found = list(examine())
    texts = said(iter(found))
    assert [one for one in found if one.wrong] == []
    assert hf_longctx.__version__ in texts["hf_longctx"]
    assert texts["self-check"].startswith("passed")
    assert texts["hooks"] == "9 of 9 in place"
    assert "chosen for" in texts["kernel blocked"] + texts["kernel reference"]
    assert str(len(list(Path("patches").glob("*/*/patch.toml")))) in texts["upstream"].split()


def test_a_kernel_that_is_not_used_says_why() -> None:
    texts = said(kernels())
    if "flash_attn" in sys.modules:
        pytest.skip("flash-attn is installed")
    assert "is not installed" in texts["kernel flash_attn"]


def test_a_model_that_is_as_it_should_be(dual: Path) -> None:
    texts = said(examine(str(dual)))
    assert "tier dual; LMInfinite(" in texts["model"]
    assert "n_local=16" in texts["model"]
    assert texts["shim"].endswith(", unchanged")
    assert texts["auto_map"].startswith("hf_longctx: AutoModel, AutoModelForCausalLM")
    assert texts["card"] == "none"
    assert "no README.md" in texts["note"]
    assert "problem" not in texts


def test_a_model_with_an_edited_shim_is_wrong_and_no_folder_is_named(dual: Path, tmp_path: Path) -> None:
    folder = tmp_path / "client y" / "model"
    folder.parent.mkdir()
    folder.mkdir()
    for file in dual.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    with (folder / "modeling_hf_longctx.py").open("a") as file:
        file.write(f"# {TOKEN}\n")
    run = CliRunner().invoke(cli.app, ["doctor", str(folder)])
    assert run.exit_code == 1
    assert "WRONG: modeling_hf_longctx.py was edited by hand" in run.output
    assert ", edited" in run.output
    for private in ("client", str(tmp_path), str(Path.home()) + "/", sys.prefix, TOKEN):
        assert private not in run.output, private


def test_an_adapter_s_base_on_this_machine_is_not_named(tmp_path: Path) -> None:
    config = {"base_model_name_or_path": "/srv/client x/llama", "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    texts = said(examine(str(tmp_path)))
    assert "the adapter's base is '…'" in texts["note"]


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_that_is_no_model(made: bool, tmp_path: Path) -> None:
    folder = tmp_path / "my texts"
    if made:
        folder.mkdir()
    run = CliRunner().invoke(cli.app, ["doctor", str(folder)])
    assert run.exit_code == 1
    assert "WRONG: cannot be looked at: " in run.output
    assert "my texts" not in run.output
    assert "self-check" in run.output  # the rest is told all the same


def test_a_gguf_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(64))
    assert "'…' is a GGUF file" in said(examine(str(file)))["model"]


def test_a_broken_config_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert "config.json is no JSON" in said(examine(str(tmp_path)))["model"]


def test_offline_and_without_a_gpu(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"HF_TOKEN": TOKEN, "PYTHONPATH": python_path(), "COLUMNS": "80"}
    environment |= {"HF_ENDPOINT": "https://user:secret@models.client.example"}
    command = [sys.executable, "-m", "hf_longctx.cli.main", "doctor", "nobody/nothing"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "WRONG: cannot be looked at: " in done.stdout
    assert "none that torch sees" in done.stdout
    assert "another one than huggingface.co (HF_ENDPOINT), token: yes, offline (HF_HUB_OFFLINE)" in done.stdout
    for private in (TOKEN, "secret", "client", str(tmp_path)):
        assert private not in done.stdout + done.stderr, private


def test_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "token: no" in said(hub())["Hub"]


def test_releases_that_were_not_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    real = metadata.version
    for version, words in (("5.99.1", "newer than those tested"), ("5.18.2", "between those tested")):
        monkeypatch.setattr(versions.transformers, "__version__", version)
        instead = {"transformers": version}
        monkeypatch.setattr(metadata, "version", lambda name, given=instead: given.get(name) or real(name))
        assert f"{version}, {words}" in said(releases())["transformers"]


def test_a_release_that_fails_the_self_check(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_longctx.attention import forward

    for module in (caches, forward):
        monkeypatch.setattr(module, "CACHE_NAMES", ("what_it_was_called_before",))
    try:
        texts = said(self_check())
    finally:
        caches.taken_name.cache_clear()  # what it remembers of signatures without the names
    assert texts["self-check"].startswith("WRONG attention methods are refused here: ")


def test_what_fails_is_told_and_the_rest_is_still_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Any]:
        raise RuntimeError("no driver in /opt/client/lib")
        yield

    monkeypatch.setattr(sys.modules[examining.__module__], "kernels", broken)
    texts = said(examine())
    assert texts["not looked at"] == "WRONG RuntimeError: no driver in …"
    assert "hooks" in texts


def test_a_wrap_of_other_code_over_a_hook_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = GenerationMixin._prefill

    @functools.wraps(ours)
    def wrap(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    monkeypatch.setattr(GenerationMixin, "_prefill", wrap)
    texts = said(hooks())
    assert texts["hook"] == f"GenerationMixin._prefill: under a wrap of {__name__}"
    assert texts["hooks"] == "9 of 9 in place"


def test_a_hook_that_other_code_has_replaced_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GenerationMixin, "_prefill", lambda self: None)
    texts = said(hooks())
    assert texts["hook"] == f"WRONG GenerationMixin._prefill: replaced by {__name__}"
    assert texts["hooks"] == "WRONG 8 of 9 in place"


def test_hooks_that_were_taken_back() -> None:
    key = vars(PreTrainedConfig)["hf_longctx"]
    hf_longctx.uninstall()
    try:
        texts = said(hooks())
    finally:
        hf_longctx.install()
        PreTrainedConfig.hf_longctx = key
    assert texts["hooks"] == "WRONG 0 of 9 in place"
    assert "PreTrainedModel.post_init: not installed" in texts["hook"]


def test_defects_of_the_installed_versions_and_what_cures_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    here = metadata.version("transformers")
    kinds = {"wrong": "shim", "fixed": "diff", "not run": "refused"}
    entries = [
        Defect(tmp_path / f"00{i}-it", "transformers", "t", kinds[seen], seen={here: seen})
        for i, seen in enumerate(kinds)
    ]
    entries.append(Defect(tmp_path / "009-other", "no-such-package", "t", "diff", seen={"1.0": "wrong"}))
    monkeypatch.setattr(ledger, "defects", lambda: {one.id: one for one in entries})
    texts = said(ledger.upstream())
    assert texts["upstream"] == "4 defects known, 2 of them here or not looked at"
    assert texts["defect"].splitlines() == [
        f"000-it (transformers {here}): present; shim, not applied",
        f"002-it (transformers {here}): not looked at on this version; refused",
    ]
    monkeypatch.setattr(ledger, "active", lambda: [Shim(entries[0], active=True)])
    assert "present; shim, applied" in said(ledger.upstream())["defect"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no config in '/home/me/my models/x': see", "no config in '…': see"),
        ("at /home/me/model.", "at …"),
        ("in ~/models and C:\\Users\\me\\x, both", "in … and …, both"),
        (f"token {TOKEN} given", "token hf_… given"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("you/model, 5/6 and/or I/O", "you/model, 5/6 and/or I/O"),
        ("folder work/client/m is empty", "folder … is empty"),
    ],
)
def test_paths_and_tokens_are_left_out(text: str, shown: str) -> None:
    assert anonymous(text, "work/client/m") == shown
