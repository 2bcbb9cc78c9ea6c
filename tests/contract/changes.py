"""What a method does, and that all of it can be taken back, copied, saved and loaded."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_longctx
from hf_longctx import LMInfinite, RopeScaling
from tests.contract.registry import close, differs, fingerprint, prop, prop_where, same
from tests.contract.stack import (
    as_published,
    decides_positions,
    has_reference,
    identity_of,
    in_key,
    is_identity,
    native_of,
    parts,
)
from tests.tiny import logits_of, text, tiny

IDS = text(2, 24)


@prop
def changes_the_output_and_undo_is_bit_equal(method: Any, family: str) -> None:
    model = tiny(family)
    stock, before = logits_of(model, IDS), fingerprint(model)
    patch = method.apply(model)
    if is_identity(method):
        same(logits_of(model, IDS), stock, "the hook alone")
    else:
        differs(logits_of(model, IDS), stock)
    model.generate(IDS, max_new_tokens=2)
    patch.undo()
    same(logits_of(model, IDS), stock, "after undo")
    assert fingerprint(model) == before


@prop
def on_is_undone_also_after_an_exception(method: Any, family: str) -> None:
    model = tiny(family)
    stock, before = logits_of(model, IDS), fingerprint(model)
    with method.on(model) as inside:
        assert inside is model
        assert [p.method for p in hf_longctx.applied(model)] == parts(method)
    with pytest.raises(IndexError), method.on(model):
        model(IDS + 1000)  # no such words
    same(logits_of(model, IDS), stock)
    assert fingerprint(model) == before


@prop
def what_inference_mode_has_made_works_outside_of_it(method: Any, family: str) -> None:
    def run(model: Any) -> list[torch.Tensor]:
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    inside, outside = (tiny(family).requires_grad_(True) for _ in range(2))
    stock = run(outside)
    with torch.inference_mode():
        method.apply(inside)
        inside.generate(IDS, max_new_tokens=2)
    method.apply(outside)
    for one, other in zip(run(inside), run(outside), strict=True):
        same(one, other, "applied in inference mode")
    with torch.inference_mode():
        hf_longctx.undo(inside)
    for one, other in zip(run(inside), stock, strict=True):
        same(one, other, "undone in inference mode")


@prop_where(lambda method, family: has_reference(method))
def identity_settings_leave_the_output_equal(method: Any, family: str) -> None:
    model = tiny(family)
    stock = logits_of(model, IDS)
    with identity_of(method).on(model):
        close(logits_of(model, IDS), stock)
        close(logits_of(model, IDS, use_cache=False), stock)


@prop_where(lambda method, family: has_reference(method))
def forward_and_gradients_equal_brute_force(method: Any, family: str) -> None:
    model = tiny(family)
    model.requires_grad_(True)

    def run() -> list[torch.Tensor]:
        model.zero_grad()
        out = model(IDS, labels=IDS, use_cache=False)
        (out.loss * 10).backward()
        return [out.logits.detach(), *(p.grad.clone() for p in model.parameters())]

    with as_published(model, method):
        truth = run()
    with method.on(model):
        ours = run()
    for (name, _), mine, other in zip([("logits", 0), *model.named_parameters()], ours, truth, strict=True):
        # gradients of the loss times ten are O(1), like the logits
        close(mine, other, name)


@prop
def a_failure_inside_apply_leaves_nothing(method: Any, family: str) -> None:
    model = tiny(family)
    *below, last = parts(method)
    for part in below:  # of a stack the newest fails, and the others stay
        part.apply(model)
    stock, before = logits_of(model, IDS), fingerprint(model)
    late = "hf_longctx.patch.Patch.set_buffer" if last.native else "hf_longctx.attention.method.check_layer"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(late, _fails)
        with pytest.raises(ValueError, match="half-way"):
            last.apply(model)
    assert fingerprint(model) == before
    assert [p.method for p in hf_longctx.applied(model)] == below
    same(logits_of(model, IDS), stock)


@prop
def what_the_user_changes_meanwhile_survives_undo(method: Any, family: str) -> None:
    model = tiny(family)
    patch = method.apply(model)
    model.resize_token_embeddings(70)
    model.config.use_cache = False
    resized = logits_of(model, IDS)
    patch.undo()
    text_config = model.config.get_text_config()
    assert (text_config.vocab_size, text_config.use_cache, text_config.hf_longctx) == (70, False, None)
    assert text_config._attn_implementation == "sdpa"
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder)
    method.apply(loaded)
    same(logits_of(loaded, IDS), resized)


def _fails(*args: Any) -> None:
    raise ValueError("half-way")


@prop
def save_and_load_give_equal_logits(method: Any, family: str) -> None:
    model = tiny(family)
    with native_of(method).on(model):
        without_key = logits_of(model, IDS)  # the stock model's, unless its rope_parameters were changed
    method.apply(model)
    here = logits_of(model, IDS)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype="auto")
    for other in (loaded, again):
        assert [p.method for p in hf_longctx.applied(other)] == in_key(method)
        same(logits_of(other, IDS), here)
    hf_longctx.undo(loaded)
    same(logits_of(loaded, IDS), without_key, "a loaded model's undo")
    assert loaded.config.hf_longctx is None
    assert "hf_longctx" not in loaded.config.to_json_string()


@prop
def deepcopy_is_independent(method: Any, family: str) -> None:
    model = tiny(family)
    stock = logits_of(model, IDS)
    patch = method.apply(model)
    ours = logits_of(model, IDS)
    twin = copy.deepcopy(model)
    assert not {id(m) for m in model.modules()} & {id(m) for m in twin.modules()}
    patch.undo()
    same(logits_of(twin, IDS), ours, "the copy after the original's undo")
    same(logits_of(model, IDS), stock)
    other = copy.deepcopy(twin)
    hf_longctx.undo(twin)
    same(logits_of(twin, IDS), stock, "the copy's own undo")
    with torch.no_grad():
        twin.get_input_embeddings().weight.zero_()
    same(logits_of(other, IDS), ours, "a copy of the copy")


@prop
def torch_save_and_pickle_keep_the_method(method: Any, family: str) -> None:
    model = tiny(family)
    stock = logits_of(model, IDS)
    method.apply(model)
    ours = logits_of(model, IDS)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (torch.load(stream, weights_only=False), pickle.loads(pickle.dumps(model))):
        same(logits_of(other, IDS), ours)
        hf_longctx.undo(other)
        same(logits_of(other, IDS), stock)


@prop
def a_second_method_is_refused_and_undo_twice_is_an_error(method: Any, family: str) -> None:
    model = tiny(family)
    patch = method.apply(model)
    ours, before = logits_of(model, IDS), fingerprint(model)
    for part in parts(method):
        second: Any = RopeScaling(factor=2.0) if part.native else LMInfinite(n_local=5)
        for again in (second, part):
            with pytest.raises(ValueError, match=r"already (those of|applied to)"):
                again.apply(model)
            assert fingerprint(model) == before
    same(logits_of(model, IDS), ours)
    patch.undo()
    with pytest.raises(RuntimeError, match="nothing to undo"):
        patch.undo()


# a native row runs the stock attention, whichever it is
@prop_where(lambda method, family: decides_positions(method))
def eager_is_honoured_as_the_inner_implementation(method: Any, family: str) -> None:
    model = tiny(family, attn_implementation="eager")
    stock = logits_of(model, IDS)
    fast = tiny(family)
    patch = method.apply(model)
    kernels = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        import hf_longctx.ops.attend as branches

        attend = branches.attend
        monkeypatch.setattr(
            "hf_longctx.attention.inputs.attend", lambda b, **kw: (kernels.append(kw["kernel"]), attend(b, **kw))[1]
        )
        ours = logits_of(model, IDS)
    if not is_identity(method):
        assert set(kernels) == {"reference"}
    with method.on(fast):
        close(ours, logits_of(fast, IDS), "eager against sdpa")
    patch.undo()
    same(logits_of(model, IDS), stock)
    assert model.config._attn_implementation == "eager"


# under a native row it may change
@prop_where(lambda method, family: decides_positions(method))
def a_changed_attn_implementation_is_noticed(method: Any, family: str) -> None:
    model = tiny(family)
    stock, before = logits_of(model, IDS), fingerprint(model)
    patch = method.apply(model)
    model.set_attn_implementation("eager")
    with pytest.raises(RuntimeError, match=r"attn_implementation was changed to 'eager'"):
        logits_of(model, IDS)
    patch.undo()
    same(logits_of(model, IDS), stock)
    assert fingerprint(model) == before


# the stock attention of a native row has them
@prop_where(lambda method, family: decides_positions(method))
def output_attentions_is_refused(method: Any, family: str) -> None:
    model = tiny(family)
    method.apply(model)
    with pytest.raises(ValueError, match="output_attentions=True"):
        model(IDS, output_attentions=True)
    with pytest.raises(ValueError, match="output_attentions=True"):
        model.generate(IDS, max_new_tokens=2, output_attentions=True, return_dict_in_generate=True)
    assert len(model(IDS, output_hidden_states=True).hidden_states) == model.config.num_hidden_layers + 1
