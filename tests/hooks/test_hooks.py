"""The three hooks: inert for every model without our key, active for every model with it, removable."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

import hf_longctx
from hf_longctx import LMInfinite
from tests.contract.registry import differs, same
from tests.tiny import FAMILIES, build, config_of, logits_of, sharpen, text, tiny

IDS = text(2, 24)
METHOD = LMInfinite(n_global=2, n_local=6)
KEY = {"version": 1, "methods": [{"name": "lm_infinite", "n_global": 2, "n_local": 6}]}
ROOT = Path(__file__).parents[2]


def run(code: str, *args: str) -> str:
    """A new process, which knows this checkout."""
    path = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": args[0]}
    done = subprocess.run([sys.executable, "-c", code, *args], env=path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


STOCK = """
import sys
from pathlib import Path
import torch
from tests.tiny import text, tiny
out = Path(sys.argv[1])

def record(when):
    for family in ("llama", "gemma3"):
        model = tiny(family, attn_implementation="eager")
        recorded = model(text(2, 19), output_attentions=True, output_hidden_states=True)
        generated = model.generate(text(2, 9), max_new_tokens=4, do_sample=False)
        tensors = [recorded.logits, *recorded.attentions, *recorded.hidden_states, generated]
        torch.save([t.detach() for t in tensors], out / f"{when}-{family}.pt")
        (out / f"{when}-{family}.txt").write_text(repr([(n, type(m)) for n, m in model.named_modules()]))
        model.save_pretrained(out / f"{when}-{family}")
        loaded = type(model).from_pretrained(out / f"{when}-{family}")
        torch.save(loaded(text(2, 19)).logits.detach(), out / f"{when}-{family}-loaded.pt")

record("before")
import os, threading
environment, threads, names = dict(os.environ), set(threading.enumerate()), {n for n in sys.modules}
assert not any(n.startswith("hf_longctx") for n in names)
print("importing")
import hf_longctx
assert os.environ == environment
assert set(threading.enumerate()) <= threads  # those of a load before may end meanwhile
print("imported")
record("after")
"""


def test_importing_changes_no_bit_of_a_stock_model(tmp_path: Path) -> None:
    assert "importing\nimported\n" in run(STOCK, str(tmp_path)), "the import printed something"
    before = sorted(p for p in tmp_path.rglob("before-*") for p in ([p] if p.is_file() else p.iterdir()))
    assert len(before) >= 10
    for path in before:
        other = Path(str(path).replace("before-", "after-"))
        if path.suffix == ".pt":
            one, two = torch.load(path), torch.load(other)
            for a, b in zip(*([x] if torch.is_tensor(x) else x for x in (one, two)), strict=True):
                same(a, b, path.name)
        else:
            assert path.read_bytes() == other.read_bytes(), path.name


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    """A folder with a stock model, by family."""

    def save(family: str) -> Path:
        tiny(family).save_pretrained(tmp_path / family)
        return tmp_path / family

    return save


def expected(family: str) -> torch.Tensor:
    model = tiny(family)
    METHOD.apply(model)
    return logits_of(model, IDS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["config=", "config= from a config", "keyword", "by-hand"])
def test_a_keyed_config_is_active_after_plain_from_pretrained(way: str, family: str, saved: Any) -> None:
    path, stock = saved(family), logits_of(tiny(family), IDS)
    if way == "config=":
        model = AutoModelForCausalLM.from_pretrained(path, config=hf_longctx.extend_config(path, METHOD))
    elif way == "config= from a config":
        config = hf_longctx.extend_config(AutoConfig.from_pretrained(path), METHOD)
        model = AutoModelForCausalLM.from_pretrained(path, config=config)
    elif way == "keyword":
        model = AutoModelForCausalLM.from_pretrained(path, hf_longctx=KEY)
    else:
        entry = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**entry, "hf_longctx": KEY}))
        model = AutoModelForCausalLM.from_pretrained(path)
    assert [p.method for p in hf_longctx.applied(model)] == [METHOD]
    same(logits_of(model, IDS), expected(family))
    model.generate(IDS, max_new_tokens=3)
    hf_longctx.undo(model)
    same(logits_of(model, IDS), stock)
    assert AutoModelForCausalLM.from_pretrained(saved(family)).config.hf_longctx is None


def test_a_keyed_model_is_equal_in_a_new_process(tmp_path: Path) -> None:
    model = tiny("llama")
    METHOD.apply(model)
    model.save_pretrained(tmp_path / "model")
    torch.save(logits_of(model, IDS), tmp_path / "logits.pt")
    run(
        "import sys, torch, hf_longctx\n"
        "from transformers import AutoModelForCausalLM\n"
        "from tests.tiny import logits_of, text\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1] + '/model')\n"
        "assert torch.equal(logits_of(model, text(2, 24)), torch.load(sys.argv[1] + '/logits.pt'))\n",
        str(tmp_path),
    )


def test_the_saved_entry_is_the_method_and_nothing_of_ours_besides(tmp_path: Path) -> None:
    stock, model = tiny("llama"), tiny("llama")
    METHOD.apply(model)
    stock.save_pretrained(tmp_path / "stock")
    model.save_pretrained(tmp_path / "ours")
    one, two = (json.loads((tmp_path / p / "config.json").read_text()) for p in ("stock", "ours"))
    assert two.pop("hf_longctx") == {"version": 1, "methods": [METHOD.spec()]}
    assert one == two
    names = [p.name for p in (tmp_path / "ours").iterdir()]
    for name in set(names) - {"config.json"}:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "stock" / name).read_bytes(), name


def test_extend_config_leaves_its_argument_alone_and_keeps_all_else() -> None:
    config = config_of("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4})
    config.custom = {"a": [1, 2]}
    before = copy.deepcopy(config.to_dict())
    extended = hf_longctx.extend_config(config, METHOD)
    assert config.to_dict() == before
    assert {**extended.to_dict(), "hf_longctx": None} == {**before, "hf_longctx": None}
    assert extended.hf_longctx == {"version": 1, "methods": [METHOD.spec()]}
    assert hf_longctx.extend_config(extended).hf_longctx is None, "no methods take the key out"
    with pytest.raises(ValueError, match="expected a method"):
        hf_longctx.extend_config(config, "lm_infinite")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"LlamaForCausalLM: expected a config.*model\.config"):
        hf_longctx.extend_config(tiny(), METHOD)


BAD_KEYS: dict[str, tuple[Any, str]] = {
    "unknown method": ({"version": 1, "methods": [{"name": "lm_infinit"}]}, "(?s)Did you mean 'lm_infinite'.*upgrade"),
    "newer schema": ({"version": 2, "methods": []}, r"upgrade: git pull && pip install \."),
    "not a dict": ("lm_infinite", "expected {"),
    "a list": ([], "expected {"),
    "empty dict": ({}, "expected {"),
    "no version": ({"methods": []}, "expected {"),
    "version as text": ({"version": "1", "methods": []}, "version='1'"),
    "version 0": ({"version": 0, "methods": []}, "version=0"),
    "methods not a list": ({"version": 1, "methods": {}}, "expected {"),
    "method as a string": ({"version": 1, "methods": ["lm_infinite"]}, "a method is given as"),
    "nameless": ({"version": 1, "methods": [{"n_local": 4}]}, "a method is given as"),
    "unknown field": ({"version": 1, "methods": [{"name": "lm_infinite", "nlocal": 4}]}, "Did you mean 'n_local'"),
    "text for a number": ({"version": 1, "methods": [{"name": "lm_infinite", "n_local": "4"}]}, "expected int or None"),
    "true for a number": ({"version": 1, "methods": [{"name": "lm_infinite", "top_k": True}]}, "expected int"),
    "half a token": ({"version": 1, "methods": [{"name": "lm_infinite", "n_local": 4.5}]}, "expected int or None"),
    "zero window": ({"version": 1, "methods": [{"name": "lm_infinite", "n_local": 0}]}, "at least 1 token"),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_a_bad_entry_fails_with_what_to_do(case: str, saved: Any) -> None:
    value, message = BAD_KEYS[case]
    message = f"^hf_longctx.*{message}" if not message.startswith("(?s)") else message  # where to look
    path = saved("llama")
    with pytest.raises(ValueError, match=message):
        LlamaConfig(hf_longctx=value)
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(path, hf_longctx=value)
    entry = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**entry, "hf_longctx": value}))
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(path)


def test_uninstall_and_install(saved: Any) -> None:
    path = saved("llama")
    stock, config = logits_of(tiny(), IDS), hf_longctx.extend_config(saved("llama"), METHOD)
    keyed = AutoModelForCausalLM.from_pretrained(path, config=config)
    ours = logits_of(keyed, IDS)
    post_init, prepare = PreTrainedModel.post_init, GenerationMixin._prepare_cache_for_generation
    descriptor = vars(PreTrainedConfig)["hf_longctx"]
    try:
        hf_longctx.uninstall()
        hf_longctx.uninstall()
        assert PreTrainedModel.post_init is not post_init
        assert "hf_longctx" not in vars(PreTrainedConfig)
        assert not hasattr(PreTrainedModel.post_init, "__wrapped__")
        ignoring = AutoModelForCausalLM.from_pretrained(path, config=config)
        same(logits_of(ignoring, IDS), stock)
        same(logits_of(keyed, IDS), ours, "a model keeps its method")
        generated = keyed.generate(IDS, max_new_tokens=5, do_sample=False)
    finally:
        hf_longctx.install()
        hf_longctx.install()
    assert PreTrainedModel.post_init.__wrapped__.__qualname__ == post_init.__wrapped__.__qualname__
    assert not hasattr(PreTrainedModel.post_init.__wrapped__, "__wrapped__"), "installed twice"
    same(logits_of(AutoModelForCausalLM.from_pretrained(path, config=config), IDS), ours)
    same(keyed.generate(IDS, max_new_tokens=5, do_sample=False), generated)
    # the fixture compares identities; ours are new functions of the same meaning
    PreTrainedModel.post_init, GenerationMixin._prepare_cache_for_generation = post_init, prepare
    PreTrainedConfig.hf_longctx = descriptor


def test_two_models_sharing_one_config_object_are_independent() -> None:
    config = config_of("llama")
    one, two = (build(LlamaForCausalLM, config) for _ in range(2))
    stock = logits_of(one, IDS)
    patch = METHOD.apply(one)
    same(logits_of(two, IDS), stock, "the other model")
    assert two.config.hf_longctx is None
    METHOD.apply(two)
    patch.undo()
    same(logits_of(one, IDS), stock)
    differs(logits_of(two, IDS), stock)


def test_two_models_built_from_one_keyed_config_object_are_independent(tmp_path: Path) -> None:
    config = hf_longctx.extend_config(config_of("llama"), METHOD)
    one, two = (build(LlamaForCausalLM, config, attn_implementation=None) for _ in range(2))
    ours = logits_of(two, IDS)
    hf_longctx.undo(one)
    differs(logits_of(one, IDS), ours)
    same(logits_of(two, IDS), ours, "the other model")
    assert one.config.hf_longctx is None
    assert config.hf_longctx is not None, "the caller's config is the caller's"
    two.save_pretrained(tmp_path)
    same(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path), IDS), ours)
    three = sharpen(LlamaForCausalLM(config))
    assert [p.method for p in hf_longctx.applied(three)] == [METHOD]


def test_a_keyed_base_model_and_a_keyed_classifier_are_active(saved: Any) -> None:
    path = saved("llama")
    for auto in (AutoModel, AutoModelForSequenceClassification):
        model = auto.from_pretrained(path, hf_longctx=KEY)
        assert [p.method for p in hf_longctx.applied(model)] == [METHOD]
        ours = model(IDS)[0]
        hf_longctx.undo(model)
        differs(model(IDS)[0], ours)


def test_a_key_without_methods_is_inert(saved: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved("llama"), hf_longctx={"version": 1, "methods": []})
    same(logits_of(model, IDS), logits_of(tiny(), IDS))


def test_a_keyed_encoder_fails_clearly() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(**sizes, vocab_size=30)
    config.hf_longctx = KEY
    with pytest.raises(ValueError, match=r"BertModel: no decoder with rotary position embeddings was found"):
        BertModel(config)


def test_methods_are_listed_and_names_are_unique() -> None:
    assert list(hf_longctx.list_methods()) == [
        "code_lookup",
        "giraffe",
        "infllm",
        "lm_infinite",
        "position_free",
        "rope_scaling",
        "share_beginning",
        "streaming_llm",
        "xl3m",
    ]
    with pytest.raises(ValueError, match="cannot take the name of"):
        type("Another", (hf_longctx.LongContextMethod,), {"name": "lm_infinite"})
