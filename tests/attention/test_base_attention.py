"""The `attn_implementation` that the user chose: the inner kernel, or refused by name. Needs no flash-attn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AutoModelForCausalLM, PreTrainedModel, masking_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import hf_longctx
from hf_longctx import LMInfinite, PositionFree, StreamingLLM
from hf_longctx.attention.base_attention import KERNEL_OF
from hf_longctx.attention.state import STATE
from hf_longctx.ops import available
from hf_longctx.ops.attend import attend
from hf_longctx.ops.kernels import KERNELS, Call
from hf_longctx.ops.kernels.blocked import Blocked
from hf_longctx.ops.masks import BeyondWindow, Causal, Full, Window
from tests.contract.registry import close, fingerprint, same
from tests.ops.cases import problem
from tests.tiny import left_padded, logits_of, text, tiny

IDS = text(2, 24)
METHODS = {
    "lm_infinite": LMInfinite(n_global=2, n_local=6),
    "lm_infinite_top3": LMInfinite(n_global=2, n_local=6, top_k=3, top_k_from_layer=1),
    "streaming_llm": StreamingLLM(n_sink=2, window=6),
    "position_free": PositionFree(),
}
FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
REFUSED = {
    "paged|sdpa": "continuous batching",
    "paged|eager": "continuous batching",
    "kernels-community/flash-attn2": "from the Hub",
    "my_own_attention": "is not supported by hf_longctx",
    "hf_longctx": "is not supported by hf_longctx",
    "flash_attention_2": "flash-attn is not installed",
    "flash_attention_3": "flash-attn is not installed",
    "flash_attention_4": "flash-attn is not installed",
    "flex_attention": "'flex', and its compiled kernel has no backward on the CPU",
}


class Stand(Blocked):
    """A kernel that says no to what flash attention has no words for, and remembers what it did."""

    def __init__(self) -> None:
        self.did: list[Any] = []

    def unsupported_reason(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        return None if isinstance(call.mask, Causal | Window | Full) else "it cannot be said as a window"

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        self.did.append(type(call.mask))
        return super().forward(call, q_BHLD, k_BGSD, v_BGSD)


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    """flash-attn and a GPU for it, as far as can be had: the kernels' places are taken, the rest is as it is."""
    kernel = Stand()
    for name in ("flash_attn", "flex"):
        monkeypatch.setitem(KERNELS, name, kernel)
    return kernel


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers takes every name as if its packages were here."""
    monkeypatch.setattr(PreTrainedModel, "_check_and_adjust_attn_implementation", lambda self, name, *a, **kw: name)


def under(name: str, family: str = "llama", **changes: Any) -> Any:
    """A stock model whose config names an implementation that cannot be had on this machine."""
    model = tiny(family, **changes)
    vars(model.config)["_attn_implementation_internal"] = name
    return model


def test_every_name_has_a_kernel() -> None:
    assert {"eager", "sdpa", "flex_attention", *FLASH} == set(KERNEL_OF)
    assert set(KERNEL_OF.values()) <= {*KERNELS, "auto"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_at_apply(name: str) -> None:
    model = under(name)
    before = fingerprint(model)
    with pytest.raises(ValueError, match=REFUSED[name]) as caught:
        METHODS["lm_infinite"].apply(model)
    assert repr(name) in str(caught.value)
    assert "attn_implementation='sdpa'" in str(caught.value)
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", [name for name in REFUSED if KERNEL_OF.get(name) is None])
def test_a_keyed_checkpoint_refuses_the_same_names(name: str, tmp_path: Path, unchecked: None) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match=REFUSED[name]):
        AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name)


@pytest.mark.parametrize("name", [*FLASH, "flex_attention"])
def test_a_keyed_checkpoint_on_the_cpu_fails_by_name_and_not_silently(
    name: str, tmp_path: Path, unchecked: None
) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match=f"kernel='{KERNEL_OF[name]}' cannot do this attention|is unavailable here"):
        logits_of(AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name), IDS)


def saved(path: Path) -> Tensor:
    """The logits of a keyed checkpoint at `path`."""
    model = tiny()
    METHODS["lm_infinite"].apply(model)
    model.save_pretrained(path)
    return logits_of(model, IDS)


@pytest.mark.parametrize("version", ["2.6.3", "1.0.9"])
def test_an_old_flash_attn_is_refused_by_its_version(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as installed:
        installed.setattr("importlib.metadata.version", lambda name: version)
        lacks = available._flash_attn_lacks()
        installed.setattr("importlib.metadata.version", lambda name: "2.7.4.post1")
        assert available._flash_attn_lacks() is None
    monkeypatch.setattr("hf_longctx.ops.kernels.flash_attn.FLASH_ATTN_LACKS", lacks)
    with pytest.raises(ValueError, match=f"flash-attn {version} is older than 2.7"):
        PositionFree().apply(under("flash_attention_2"))


def test_flash_attn_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_longctx.ops.kernels.flash_attn.FLASH_ATTN_LACKS", None)
    with pytest.raises(ValueError, match="'flash_attn', and tensors are not on a CUDA device"):
        PositionFree().apply(under("flash_attention_2"))


@pytest.mark.parametrize("name", [*FLASH, "flex_attention"])
@pytest.mark.parametrize("method", METHODS)
def test_the_chosen_kernel_does_the_branches_that_it_can(method: str, name: str, stand: Stand) -> None:
    fast, model = tiny(), under(name)
    ids, mask = left_padded([row[: 24 - 7 * i] for i, row in enumerate(IDS)])
    METHODS[method].apply(fast)
    patch = METHODS[method].apply(model)
    close(logits_of(model, IDS), logits_of(fast, IDS), "prefill")
    real = mask.bool()
    close(logits_of(model, ids, attention_mask=mask)[real], logits_of(fast, ids, attention_mask=mask)[real], "padded")
    settings = {"max_new_tokens": 5, "do_sample": False}
    same(model.generate(IDS, **settings), fast.generate(IDS, **settings))
    assert stand.did
    assert BeyondWindow not in stand.did
    patch.undo()
    assert model.config._attn_implementation == name


@pytest.mark.parametrize("name", [*FLASH, "flex_attention"])
def test_a_keyed_checkpoint_runs_through_the_chosen_kernel(
    name: str, tmp_path: Path, stand: Stand, unchecked: None
) -> None:
    expected = saved(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name)
    close(logits_of(model, IDS), expected)
    assert stand.did
    hf_longctx.undo(model)
    assert model.config._attn_implementation == name


@pytest.mark.parametrize(("name", "kernel"), [("eager", "reference"), ("sdpa", "auto"), (None, "auto")])
def test_a_keyed_checkpoint_takes_eager_and_sdpa(name: str | None, kernel: str, tmp_path: Path) -> None:
    expected = saved(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name)
    assert vars(model.model)[STATE].kernel == kernel
    close(logits_of(model, IDS), expected)


def windowed(seen: list[Any], name: str) -> Callable[..., tuple[Tensor, None]]:
    """What flash and flex attention do for a sliding-window layer, for a batch without padding."""

    def function(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
        assert module.config._attn_implementation == name, "flash attention asks here which library to call"
        seen.append((module.layer_idx, kwargs["sliding_window"], type(mask)))
        L, S = q.shape[2], k.shape[2]
        distance = torch.arange(S - L, S)[:, None] - torch.arange(S)
        sees = (distance >= 0) & (distance < kwargs["sliding_window"])
        scale = {"scale": kwargs["scaling"], "enable_gqa": True}
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=sees, **scale).transpose(1, 2), None

    return function


@pytest.mark.parametrize(("name", "kind"), [("flash_attention_2", type(None)), ("flex_attention", BlockMask)])
def test_sliding_layers_go_on_with_the_inner_implementation_and_its_mask(
    name: str, kind: type, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, name, windowed(seen, name))
    # compiling the mask takes longer than all tests of this file
    monkeypatch.setattr(masking_utils, "create_block_mask", lambda *a, _compile, **kw: create_block_mask(*a, **kw))
    fast, model = tiny("gemma3", num_hidden_layers=3), under(name, "gemma3", num_hidden_layers=3)
    METHODS["lm_infinite"].apply(fast)
    before = fingerprint(model)
    patch = METHODS["lm_infinite"].apply(model)
    seen.clear()  # the self-check reads through the model too
    close(logits_of(model, IDS), logits_of(fast, IDS))
    window = model.config.sliding_window
    assert seen == [(0, window, kind), (2, window, kind)]
    same(model.generate(IDS, max_new_tokens=4), fast.generate(IDS, max_new_tokens=4))
    patch.undo()
    assert fingerprint(model) == before


def test_a_kernel_that_cannot_run_here_is_an_error_also_when_others_could() -> None:
    p = problem("prefill")
    for name in ("flash_attn", "cuda_flash", "flex"):
        with pytest.raises(ValueError, match=f"kernel='{name}' cannot do this attention"):
            attend([p.branch(Window(5))], scale=1.0, kernel=name, strict=False)
