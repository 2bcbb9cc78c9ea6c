"""PIE: a cache after an edit, against the cache of a text that was read anew."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from hf_longctx import LMInfinite, PositionFree, StreamingLLM
from hf_longctx.anatomy import attention_layers, find_decoder
from hf_longctx.attention.rerotate import Mover
from hf_longctx.editing import EditReport, edit
from hf_longctx.upstream.versions import LONGROPE_PER_LAYER
from tests.tiny import FAMILIES, MORE_FAMILIES, VOCAB, config_of, greedy_uncached, logits_of, text, tiny

ALL = (*FAMILIES, *MORE_FAMILIES)
IDS = text(1, 60)[0].tolist()
EVERYTHING = 10_000  # to repair so much is to read all that is behind the first edit
EDITS: dict[str, list[int]] = {
    "insert": [*IDS[:20], 5, 6, 7, *IDS[20:]],
    "delete": IDS[:20] + IDS[27:],
    "replace": [*IDS[:20], 8, *IDS[21:]],
    "replace by more": [*IDS[:20], 9, 9, 9, 9, *IDS[22:]],
    "several": IDS[:10] + [3] + IDS[12:30] + [4] * 9 + IDS[30:50] + IDS[52:],
    "at the start": [11, 12, *IDS],
    "delete the start": IDS[3:],
    "at the end": [*IDS, 4, 5],
    "delete the end": IDS[:-4],
    "the last token": [*IDS[:-1], 7],
    "nothing": IDS,
    "all but one token": IDS[:1],
    "all": [60, 59, 58, 57, 56],
}
METHODS = [PositionFree(), LMInfinite(n_local=100, top_k=2, top_k_from_layer=1), StreamingLLM(n_sink=2, window=100)]
SCALED = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope, one table": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "short_factor": [1.0, 2.0, 3.0, 4.0],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
    },
}


WIDE: tuple[dict[str, Any], dict[str, Any]] = {}, {"sliding_window": 200}  # no window evicts anything


def wide(family: str) -> Any:
    return tiny(family, **WIDE[family == "gemma3"])


def read(model: Any, ids: list[int]) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    logits_of(model, torch.tensor([ids]), past_key_values=cache, use_cache=True)
    return cache


def last_logits(model: Any, cache: Cache, ids: list[int]) -> Tensor:
    """What the model says after `ids`, all but the last of which `cache` must hold."""
    assert cache.get_seq_length() == len(ids) - 1
    return logits_of(model, torch.tensor([ids[-1:]]), past_key_values=copy.deepcopy(cache), use_cache=True)[:, -1]


def check_exact(model: Any, old: list[int], new: list[int], repair: int, left_out: int = 0) -> EditReport:
    """The edited cache reads like one of the whole new text."""
    cache, report = edit(model, read(model, old[: len(old) - left_out]), old, new, repair)
    expected = logits_of(model, torch.tensor([new]), use_cache=False)[:, -1]
    torch.testing.assert_close(last_logits(model, cache, new), expected, atol=1e-5, rtol=1e-5)
    assert report.kept + report.moved + report.forwarded + report.repaired == len(new) - 1
    return report


# -- against a full read ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("what", EDITS)
@pytest.mark.parametrize("family", ALL)
def test_repairing_everything_is_reading_anew(family: str, what: str) -> None:
    model = tiny(family)
    for left_out in (0, 1):
        check_exact(model, IDS, EDITS[what], EVERYTHING, left_out)


@pytest.mark.parametrize("what", EDITS)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_unrotated_caches_are_edited_too(method: Any, what: str) -> None:
    for family in ("llama", "gemma3", "smollm3"):
        model = tiny(family, num_hidden_layers=3)
        with method.on(model):
            check_exact(model, IDS, EDITS[what], EVERYTHING)


@pytest.mark.parametrize("what", ["insert", "delete", "several", "at the start"])
@pytest.mark.parametrize("family", ALL)
def test_first_keys_and_values_are_those_of_a_full_read(family: str, what: str) -> None:
    """With repair=0: the first layer's keys and values depend on tokens and positions alone."""
    model, new = wide(family), EDITS[what]
    cache, report = edit(model, read(model, IDS), IDS, new, 0)
    full = read(model, new[:-1])
    torch.testing.assert_close(cache.layers[0].keys, full.layers[0].keys, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(cache.layers[0].values, full.layers[0].values, atol=1e-6, rtol=1e-6)
    assert report.repaired == 0
    assert report.moved > 0


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_scaled_rope(family: str, kind: str) -> None:
    config = config_of(family)
    if family == "gemma3" and kind.startswith("longrope") and not LONGROPE_PER_LAYER:
        pytest.skip("this transformers cannot run longrope for one kind of layer alone")
    scaled = {"rope_theta": 1e4, **SCALED[kind]}
    rope = scaled if family == "llama" else {**config.rope_parameters, "full_attention": scaled}
    model = tiny(family, rope_parameters=rope, **WIDE[family == "gemma3"])
    for new in (EDITS["insert"], EDITS["delete"]):
        cache, _ = edit(model, read(model, IDS), IDS, new, 0)
        full = read(model, new[:-1])
        layer = 0 if family == "llama" else 1
        keys, expected = cache.layers[layer].keys[:, :, :20], full.layers[layer].keys[:, :, :20]
        torch.testing.assert_close(keys, expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(cache.layers[0].keys, full.layers[0].keys, atol=1e-6, rtol=1e-6)
        check_exact(model, IDS, new, EVERYTHING)


@pytest.mark.parametrize("family", ALL)
def test_moving_there_and_back(family: str) -> None:
    model = wide(family)
    decoder: Any = find_decoder(model)
    cache = read(model, IDS)
    mover = Mover(decoder)
    for module in attention_layers(decoder):
        keys = cache.layers[int(module.layer_idx)].keys  # type: ignore[arg-type]
        there = mover.move(module, keys, 0, 37)
        back = mover.move(module, there, 37, -37)
        torch.testing.assert_close(back, keys, atol=1e-6, rtol=1e-6)
        assert torch.equal(there, keys) == (mover.layout(module, keys) is None)


# -- what is left alone ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("method", [None, PositionFree()], ids=["stock", "position_free"])
def test_what_is_not_read_again_is_left_alone(method: Any, family: str) -> None:
    model = wide(family)
    patch = method.apply(model) if method else None
    before = read(model, IDS)
    cache = copy.deepcopy(before)
    same, report = edit(model, cache, IDS, EDITS["insert"], 2)
    assert same is cache
    assert (report.edits, report.kept, report.forwarded, report.repaired) == (1, 20, 3, 2)
    assert (report.moved, report.deleted, report.reread) == (60 - 20 - 2 - 1, 0, 0)
    for old, new in zip(before.layers, cache.layers, strict=True):
        assert torch.equal(old.keys[:, :, :20], new.keys[:, :, :20])
        assert torch.equal(old.values[:, :, :20], new.values[:, :, :20])
        # stock: the next token and the last one are read again; un-rotated and in windows: the next two
        same = slice(22, 59) if patch or family == "gemma3" else slice(21, 58)
        assert torch.equal(old.values[:, :, same], new.values[:, :, same.start + 3 : same.stop + 3])
        if patch and hasattr(new, "owner"):
            assert torch.equal(old.keys[:, :, 22:-1], new.keys[:, :, 25:])
            assert new.pos.tolist() == [list(range(62))]


def test_no_change_is_no_change() -> None:
    model = tiny("gemma3")
    cache = read(model, IDS[:-1])
    before = [(layer.keys, layer.values) for layer in cache.layers]
    _, report = edit(model, cache, IDS, torch.tensor([IDS]))
    assert all(layer.keys is k and layer.values is v for layer, (k, v) in zip(cache.layers, before, strict=True))
    assert (report.edits, report.kept, report.forwarded, report.reread) == (0, 59, 0, 0)


def test_an_error_leaves_the_cache_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in (None, PositionFree()):
        model = tiny("llama")
        if method:
            method.apply(model)
        cache = read(model, IDS)
        before = [(layer.keys, layer.values, layer.get_seq_length()) for layer in cache.layers]
        copies = [(k.clone(), v.clone()) for k, v, _ in before]

        def fail(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(find_decoder(model).layers[1].mlp, "forward", fail)  # type: ignore[union-attr, index]
        with pytest.raises(RuntimeError, match="out of memory"):
            edit(model, cache, IDS, EDITS["several"])
        monkeypatch.undo()
        for layer, (k, v, length), (k_copy, v_copy) in zip(cache.layers, before, copies, strict=True):
            assert layer.keys is k
            assert layer.values is v
            assert layer.get_seq_length() == length
            assert torch.equal(k, k_copy)
            assert torch.equal(v, v_copy)
        check_exact(model, IDS, EDITS["several"], EVERYTHING)


# -- going on --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ALL)
def test_generate_goes_on_and_is_edited_again(family: str) -> None:
    model = tiny(family)
    new = EDITS["several"]
    cache, _ = edit(model, read(model, IDS), IDS, new, EVERYTHING)
    ids = torch.tensor([new])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=6)
    assert torch.equal(output, greedy_uncached(model, ids, 6))
    again = [5, *output[0].tolist()]
    edit(model, cache, output, again, EVERYTHING)
    expected = logits_of(model, torch.tensor([again]), use_cache=False)[:, -1]
    torch.testing.assert_close(last_logits(model, cache, again), expected, atol=1e-5, rtol=1e-5)


def test_a_ring_is_edited_while_nothing_has_left_it() -> None:
    model, ids = tiny("llama"), torch.tensor([IDS])
    with LMInfinite(n_global=4, n_local=80).on(model):
        cache = read(model, IDS[:-1])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=5)
        new = [*output[0, :30].tolist(), 9, 9, *output[0, 30:].tolist()] + [7] * 30  # longer than the window afterwards
        edit(model, cache, output, new, EVERYTHING)
        expected = logits_of(model, torch.tensor([new]), use_cache=False)[:, -1]
        torch.testing.assert_close(last_logits(model, cache, new), expected, atol=1e-5, rtol=1e-5)


def test_a_thousand_edits_keep_length_and_positions() -> None:
    model, held = tiny("llama", num_hidden_layers=1), IDS
    with PositionFree().on(model):
        cache = read(model, held)
        for _ in range(1_000):
            new, at = list(held), random.randrange(len(held))
            new[at : at + random.choice([0, 1, 3])] = random.choices(range(3, VOCAB), k=random.choice([0, 1, 3]))
            new = new[:90] or [3]
            edit(model, cache, held, new, 0)
            held = new
            assert cache.layers[0].pos.tolist() == [list(range(len(held) - 1))]
        full = read(model, held[:-1])
        torch.testing.assert_close(cache.layers[0].keys, full.layers[0].keys, atol=1e-6, rtol=1e-6)


# -- sliding windows -------------------------------------------------------------------------------------------------
WINDOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3, two of three layers": ("gemma3", {"num_hidden_layers": 3}),
    "mistral, all layers": ("mistral", {"sliding_window": 5}),
    "mistral, a window never full": ("mistral", {"sliding_window": 500}),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_that_have_evicted_are_read_again(name: str) -> None:
    family, changes = WINDOWS[name]
    model = tiny(family, **changes)
    for seed in range(12):
        old = text(1, 80, seed)[0].tolist()
        new = list(old)
        for _ in range(1 + seed % 3):
            at = random.randrange(len(new))
            new[at : at + random.choice([0, 1, 7])] = random.choices(range(3, VOCAB), k=random.choice([0, 1, 9]))
        check_exact(model, old, new, EVERYTHING, seed % 2)
        # nothing is behind these edits, so that nothing is approximate
        for end in ([*old[:-3], 5, 6], old[:-1], old[:40]):
            report = check_exact(model, old, end, 0, seed % 2)
            assert "full" not in name or report.reread == 0


def test_an_edit_before_the_window_moves_the_window() -> None:
    model = tiny("mistral", sliding_window=9)
    before, new = read(model, IDS), [3, 4, *IDS]
    cache, report = edit(model, copy.deepcopy(before), [*IDS, 9], [*new, 9], 0)
    for old_layer, layer in zip(before.layers, cache.layers, strict=True):
        assert torch.equal(old_layer.values, layer.values)
        assert layer.cumulative_length == 62
    full = read(model, new)
    torch.testing.assert_close(cache.layers[0].keys, full.layers[0].keys, atol=1e-6, rtol=1e-6)
    assert report.moved == 60


# -- is it worth it? -------------------------------------------------------------------------------------------------
def test_moved_keys_are_closer_than_keys_left_where_they_were() -> None:
    ours, naive = [], []
    for seed in range(8):
        model, old = tiny("llama", seed=seed, num_hidden_layers=3), text(1, 200, seed)[0].tolist()
        new = [*old[:50], 5, 6, 7, 8, 9, *old[50:]]
        truth = logits_of(model, torch.tensor([new]), use_cache=False)[:, -1].log_softmax(-1)
        before = read(model, old[:-1])
        cache, _ = edit(model, copy.deepcopy(before), old, new)
        ours.append(_kl(truth, last_logits(model, cache, new)))
        spliced = copy.deepcopy(cache)
        for layer, stale in zip(spliced.layers, before.layers, strict=True):
            layer.keys[:, :, 71:] = stale.keys[:, :, 66:]
        naive.append(_kl(truth, last_logits(model, spliced, new)))
    assert sum(ours) * 5 < sum(naive), (ours, naive)


def _kl(truth: Tensor, logits: Tensor) -> float:
    return float((truth.exp() * (truth - logits.log_softmax(-1))).sum())


def test_a_text_of_padding_tokens_is_a_text() -> None:
    """Their embedding is 0, and so are their keys."""
    model = tiny("llama")
    check_exact(model, [0] * 20, [0] * 10 + [5] + [0] * 10, EVERYTHING)
