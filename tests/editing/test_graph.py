"""The step that a CUDA graph would record, run as it is on a CPU, against the plain path. tests/gpu has the graph."""

from __future__ import annotations

import copy
import gc
import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hf_longctx import PositionFree
from hf_longctx.anatomy import find_decoder
from hf_longctx.editing import edit, forget_graph
from hf_longctx.editing.graph import fast, is_checked, move, recorded
from hf_longctx.ops import scattered
from tests.editing.test_edit import EDITS, IDS, read
from tests.tiny import VOCAB, text, tiny

FAMILIES = ("llama", "qwen3", "mistral", "smollm3", "gpt_neox")
LONG = text(1, 150, 4)[0].tolist()


@pytest.fixture(autouse=True)
def anywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CPU in fp32 passes for a GPU."""
    monkeypatch.setattr(fast, "suits", lambda keys: True)
    monkeypatch.setattr(fast, "ROUND", 64)
    yield
    fast._graphs.clear()
    fast._without.clear()


def both(model: Any, old: list[int], new: list[int], repair: int, left_out: int = 0) -> Any:
    """The layers of a cache edited by the step and of one edited plainly; their reports agree."""
    before = read(model, old[: len(old) - left_out])
    ours, report = edit(model, copy.deepcopy(before), old, new, repair, compiled=True)
    plain, expected = edit(model, copy.deepcopy(before), old, new, repair, compiled=False)
    counts = ("edits", "kept", "moved", "forwarded", "repaired", "reread", "deleted")
    assert [getattr(report, name) for name in counts] == [getattr(expected, name) for name in counts]
    return zip(ours.layers, plain.layers, strict=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_step_makes_what_the_plain_path_makes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(family)
    steps = []
    record = recorded.record
    monkeypatch.setattr(recorded, "record", lambda *args: steps.append(1) or record(*args))
    for what in ("insert", "delete", "replace", "replace by more", "several", "at the start", "delete the start"):
        for repair in (0, 5) if "delete" not in what else (5,):
            for ours, plain in both(model, IDS, EDITS[what], repair, repair % 2):
                torch.testing.assert_close(ours.keys, plain.keys, atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(ours.values, plain.values, atol=1e-5, rtol=1e-5)
    assert len(steps) <= 2, "one for every padded size and for longer buffers"
    assert is_checked(find_decoder(model))


def test_random_edits_of_caches_of_many_lengths() -> None:
    model = tiny("llama", num_hidden_layers=3)
    for seed in range(20):
        old = text(1, random.randrange(20, 200), seed)[0].tolist()
        new = list(old)
        for _ in range(1 + seed % 3):
            at = random.randrange(len(new))
            new[at : at + random.choice([0, 1, 7])] = random.choices(range(3, VOCAB), k=random.choice([1, 9, 40]))
        if sum(a != b for a, b in zip(old, new, strict=False)) == 0 or new[:1] != old[:1]:
            continue
        for ours, plain in both(model, old, new, 4):
            torch.testing.assert_close(ours.keys, plain.keys, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(ours.values, plain.values, atol=1e-5, rtol=1e-5)


def test_a_graph_of_inference_mode_is_made_again_outside_of_it() -> None:
    model = tiny()
    with torch.inference_mode():
        for ours, plain in both(model, IDS, EDITS["insert"], 5):
            torch.testing.assert_close(ours.keys, plain.keys, atol=1e-5, rtol=1e-5)
    for ours, plain in both(model, IDS, EDITS["replace"], 5):
        torch.testing.assert_close(ours.keys, plain.keys, atol=1e-5, rtol=1e-5)
    assert is_checked(find_decoder(model)), "it was not given up"


def test_what_is_kept_is_kept_to_the_last_bit() -> None:
    model = tiny("llama")
    before = read(model, IDS)
    cache, _ = edit(model, copy.deepcopy(before), IDS, EDITS["insert"], 2, compiled=True)
    for old, new in zip(before.layers, cache.layers, strict=True):
        assert torch.equal(old.keys[:, :, :20], new.keys[:, :, :20])
        assert torch.equal(old.values[:, :, 21:58], new.values[:, :, 24:61])


def test_two_caches_edited_in_turn_and_generated_from() -> None:
    model = tiny("llama")
    decoder: Any = find_decoder(model)
    caches = {seed: read(model, text(1, 90, seed)[0].tolist()) for seed in (1, 2)}
    plain, held = copy.deepcopy(caches), {seed: text(1, 90, seed)[0].tolist() for seed in (1, 2)}
    for step in range(6):
        seed = 1 + step % 2
        old = held[seed]
        at = 10 + 9 * step
        new = [*old[:at], 5 + step, 6, *old[at + step % 3 :], 7, 8]
        kept = copy.deepcopy(caches[3 - seed])
        edit(model, caches[seed], old, new, 6, compiled=True)
        edit(model, plain[seed], old, new, 6, compiled=False)
        for layer, before in zip(caches[3 - seed].layers, kept.layers, strict=True):
            assert torch.equal(layer.keys, before.keys), "the other cache shares nothing with the buffers"
        made = [
            model.generate(
                torch.tensor([new]),
                past_key_values=cache[seed],
                max_new_tokens=3,
                min_new_tokens=3,
                do_sample=False,
            )
            for cache in (caches, plain)
        ]
        assert torch.equal(*made)
        held[seed] = made[0][0].tolist()
        for layer, truth in zip(caches[seed].layers, plain[seed].layers, strict=True):
            torch.testing.assert_close(layer.keys, truth.keys, atol=1e-5, rtol=1e-5)
    assert is_checked(decoder)


def test_what_begins_between_two_boundaries_is_copied_for_the_kernel() -> None:
    shifted = torch.arange(1.0, 129).to(torch.bfloat16)[1:113].view(1, 2, 7, 8)
    assert shifted.is_contiguous()
    assert not move.fits(shifted)
    ours = move.fitting(shifted)
    assert move.fits(ours)
    assert torch.equal(ours, shifted)
    assert move.fitting(ours) is ours


def test_a_cache_of_other_tokens_is_noticed_and_left_alone() -> None:
    model = tiny("llama")
    cache = read(model, text(1, 60, 9)[0].tolist())
    before = [(layer.keys, layer.values) for layer in cache.layers]
    with pytest.raises(ValueError, match="it is of other tokens"):
        edit(model, cache, IDS, EDITS["insert"], compiled=True)
    assert all(layer.keys is k and layer.values is v for layer, (k, v) in zip(cache.layers, before, strict=True))


def test_graphs_come_with_the_second_edit_and_only_where_they_can() -> None:
    model = tiny("llama")
    decoder: Any = find_decoder(model)
    edit(model, read(model, IDS), IDS, EDITS["insert"])
    assert decoder not in fast._graphs
    edit(model, read(model, IDS), IDS, EDITS["insert"])
    assert is_checked(decoder)
    graph = fast._graphs[decoder]
    edit(model, read(model, LONG), LONG, [*LONG[:80], 5, *LONG[80:]])  # longer than its buffers
    assert fast._graphs[decoder] is not graph
    graph = fast._graphs[decoder]
    with torch.no_grad():
        decoder.layers[0].mlp.up_proj.weight = torch.nn.Parameter(decoder.layers[0].mlp.up_proj.weight.clone())
    edit(model, read(model, LONG), LONG, [*LONG[:80], 5, *LONG[80:]])
    assert fast._graphs[decoder] is not graph
    forget_graph(decoder)
    assert decoder not in fast._graphs


REFUSED = {
    "nothing to read": (EDITS["delete"], 0, "0 tokens are to be read"),
    "too much to read": ([*IDS[:20], *LONG * 8, *IDS[20:]], 0, "1200 tokens are to be read"),
    "nothing kept": ([60, 59, 58, 57, 56], 0, "are to be read"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_edits_that_cannot_come_from_a_graph(what: str) -> None:
    model = tiny("llama")
    new, repair, reason = REFUSED[what]
    with pytest.raises(ValueError, match=f"compiled=True: .*{reason}"):
        edit(model, read(model, IDS), IDS, new, repair, compiled=True)
    edit(model, read(model, IDS), IDS, new, repair)


def test_models_that_cannot_be_recorded() -> None:
    for model, reason in ((tiny("gemma3"), "windows|DynamicSliding"), (tiny("llama").train(), "train mode")):
        with pytest.raises(ValueError, match=f"compiled=True: .*({reason})"):
            edit(model, read(model, IDS), IDS, EDITS["insert"], compiled=True)
    model = tiny("llama")
    handle = model.model.layers[0].register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="hooks of other code"):
        edit(model, read(model, IDS), IDS, EDITS["insert"], compiled=True)
    handle.remove()
    with PositionFree().on(model), pytest.raises(ValueError, match="FullLayers"):
        edit(model, read(model, IDS), IDS, EDITS["insert"], compiled=True)


@pytest.mark.parametrize("how", ["it fails", "it is wrong"])
def test_without_a_graph_the_edit_goes_on(how: str, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    model = tiny("llama")
    plain, _ = edit(model, read(model, IDS), IDS, EDITS["insert"], compiled=False)

    def wrong(q: Any, *args: Any) -> Any:
        if how == "it fails":
            raise RuntimeError("operation not permitted when stream is capturing")
        return q.transpose(0, 1)

    monkeypatch.setattr(scattered, "attend", wrong)
    with caplog.at_level(logging.WARNING, "hf_longctx"):
        cache, _ = edit(model, read(model, IDS), IDS, EDITS["insert"], compiled=True)
    assert "edits continue without a CUDA graph" in caplog.text
    for ours, truth in zip(cache.layers, plain.layers, strict=True):
        assert torch.equal(ours.keys, truth.keys)
    assert model.config._attn_implementation == "sdpa"
    caplog.clear()
    edit(model, read(model, IDS), IDS, EDITS["insert"])
    assert "CUDA graph" not in caplog.text, "said once"


def test_buffers_go_with_the_model() -> None:
    model = tiny("llama")
    edit(model, read(model, IDS), IDS, EDITS["insert"], compiled=True)
    fast._graphs[find_decoder(model)].steps.clear()  # a recorded graph knows no model; the step of a CPU does
    assert len(fast._graphs) == 1
    del model
    gc.collect()
    assert len(fast._graphs) == 0
