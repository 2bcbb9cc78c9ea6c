"""CodeLookup: settings that make no sense, models that it cannot serve, and texts at the edges."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longctx import CodeLookup, LMInfinite
from hf_longctx.registry import parse
from tests.contract.registry import close, fingerprint
from tests.families.census.building import build
from tests.tiny import logits_in_parts, logits_of, text, tiny

from .lookup_rows import check_rows

IDS = text(2, 24)
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing to look up": ({"top_k": 0}, "top_k=0: expected at least 1. Without look-ups this is LMInfinite"),
    "no window": ({"n_local": 0}, "n_local=0: CodeLookup needs a window of at least 1 token"),
    "first tokens below 0": ({"n_global": -1}, "n_global=-1: expected 0 or more"),
    "misspelt by": ({"by": "sign"}, r"by='sign': no such choice. Did you mean 'signs'\? There are: signs, keys"),
    "misspelt per": ({"per": "heads"}, r"per='heads': no such choice. Did you mean 'head'\? There are: group, head"),
    "unknown gate": ({"gate": "scores"}, r"Did you mean 'score'\? There are: score, count, heads or None"),
    "a margin of another gate": (
        {"gate": "count", "gate_margin": 2.0},
        r"gate_margin=2.0: only gate='score' has a margin, and gate is 'count'\. Leave out gate_margin",
    ),
    "a margin without a gate": ({"gate": None, "gate_margin": 2}, "only gate='score' has a margin, and gate is None"),
    "a margin that nothing passes": ({"gate_margin": float("-inf")}, r"gate_margin=-inf: .* for none, LMInfinite"),
    "a negative margin without its gate": (
        {"gate": "count", "gate_margin": -1.0},
        r"gate_margin=-1.0: only gate='score' has a margin, and gate is 'count'\. Leave out gate_margin",
    ),
    "endless margin": ({"gate_margin": float("inf")}, r"gate_margin=inf: .* For all found tokens to count, take"),
    "no number as margin": ({"gate_margin": float("nan")}, "gate_margin=nan: expected a finite number of nats"),
    "margin as text": ({"gate_margin": "2"}, "gate_margin='2' is str, expected float"),
    "no heads": ({"gate": "heads"}, r"gate='heads': no heads are given. CodeLookup\(...\).calibrated\(model, ids\)"),
    "heads without their gate": (
        {"heads": [[0, 1]]},
        r"heads=\[\[0, 1\]\]: only gate='heads' has them, and gate is 'score'",
    ),
    "empty heads": ({"gate": "heads", "heads": []}, "expected at least one .* Without any head this is LMInfinite"),
    "heads without layers": ({"gate": "heads", "heads": [3, 4]}, r"expected at least one \[layer, query head\]"),
    "half a head": ({"gate": "heads", "heads": [[0, 1.5]]}, r"expected at least one \[layer, query head\]"),
    "true heads": ({"gate": "heads", "heads": [[0, True]]}, r"whole numbers from 0"),
    "negative heads": ({"gate": "heads", "heads": [[0, -1]]}, "whole numbers from 0"),
    "heads twice": ({"gate": "heads", "heads": [[0, 1], [0, 1]]}, "each once"),
    "heads as text": ({"gate": "heads", "heads": "0.1"}, "heads='0.1' is str, expected list or None"),
    "shorter shortlist": ({"top_k": 9, "shortlist": 8}, "shortlist=8: expected at least top_k=9"),
    "read beyond the window": ({"n_local": 64, "read_at": 65}, "read_at=65: expected a distance from 1 to n_local=64"),
    "read at nothing": ({"read_at": 0}, "read_at=0: expected a distance from 1"),
    "text": ({"top_k": "8"}, "top_k='8' is str, expected int"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_nonsense_settings(case: str) -> None:
    fields, message = SETTINGS[case]
    with pytest.raises(ValueError, match=message):
        CodeLookup(**fields)


def test_keys_on_the_host_need_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = tiny()
    before = fingerprint(model)
    with pytest.raises(ValueError, match="on_host=True: there is no GPU here, so all keys are in host memory anyway"):
        CodeLookup(n_local=6, on_host=True).apply(model)
    assert fingerprint(model) == before


def test_settings_are_filled_in_from_the_config() -> None:
    config = tiny().config
    assert CodeLookup().resolve(config) == CodeLookup(n_local=488, read_at=244)  # 512 - 16 - 8
    assert CodeLookup(n_local=1).resolve(config).read_at == 1
    assert parse("code_lookup", ["gate_margin=2"]) == CodeLookup(gate_margin=2.0)
    assert parse("code_lookup", ["gate=none", "top_k=4"]) == CodeLookup(gate=None, top_k=4)
    with pytest.raises(ValueError, match=r"the trained length, 512, leaves no room beside n_global=600 and top_k=8"):
        CodeLookup(n_global=600).resolve(config)
    with pytest.raises(ValueError, match="read_at=500: expected a distance from 1 to n_local=488"):
        CodeLookup(read_at=500).resolve(config)


def test_more_tokens_than_the_model_was_trained_with_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hf_longctx"):
        CodeLookup(n_local=400).resolve(tiny().config)
        assert not caplog.text
        CodeLookup(n_local=500).resolve(tiny().config)
    assert "n_global=16, n_local=500 and top_k=8 are more tokens at once than the 512" in caplog.text


def test_a_model_that_makes_its_keys_of_what_is_cached_is_refused_and_left_as_it_was() -> None:
    model = build("deepseek_v2")
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"of what the cache returns .* Use LMInfinite\(top_k=5\)"):
        CodeLookup(n_local=6).apply(model)
    assert fingerprint(model) == before
    with LMInfinite(n_local=6, top_k=2, top_k_from_layer=0).on(model):
        assert torch.isfinite(logits_of(model, IDS)).all()


def test_a_cache_of_other_settings_and_one_that_is_to_be_cropped() -> None:
    model, cache = tiny(), DynamicCache()
    with CodeLookup(n_global=2, n_local=6).on(model):
        logits_of(model, IDS, past_key_values=cache)
        with pytest.raises(RuntimeError, match="its cache cannot be cropped"):
            cache.crop(4)
    with CodeLookup(n_global=2, n_local=6, top_k=3).on(model), pytest.raises(ValueError, match="was written under"):
        logits_of(model, IDS, past_key_values=cache)


@pytest.mark.parametrize("n_local", [1, 2])
@pytest.mark.parametrize("n_global", [0, 1, 500])
def test_extreme_windows_and_more_tokens_than_there_are(n_global: int, n_local: int) -> None:
    model = tiny()
    for top_k in (1, 10_000):
        with CodeLookup(n_global=n_global, n_local=n_local, top_k=top_k, shortlist=10_000).on(model):
            full = logits_of(model, IDS, use_cache=False)
            close(logits_in_parts(model, IDS, (1, 5, 6, 24), DynamicCache()), full)


def test_a_row_of_padding_only_a_short_one_and_a_text_within_the_window() -> None:
    check_rows(CodeLookup(n_global=2, n_local=6, top_k=3), CodeLookup(n_local=24))
