"""InfLLM: settings that make no sense, and texts at the edges."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longctx import InfLLM, stream
from hf_longctx.registry import parse
from tests.contract.registry import close, differs
from tests.tiny import logits_in_parts, logits_of, text, tiny

from .lookup_rows import check_rows

IDS = text(2, 24)
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "no block": ({"block_size": 0}, "block_size=0: expected a power of two"),
    "negative block": ({"block_size": -8}, "block_size=-8: expected a power of two"),
    "no power of two": ({"block_size": 96}, "block_size=96: expected a power of two, such as 128"),
    "block over the window": ({"n_local": 64}, "block_size=128: expected at most n_local=64, .* Choose smaller blocks"),
    "nothing to look up": ({"top_k": 0}, "top_k=0: expected at least 1. Without look-ups this is LMInfinite"),
    "no window": ({"n_local": 0}, "n_local=0: InfLLM needs a window of at least 1 token"),
    "first tokens below 0": ({"n_global": -1}, "n_global=-1: expected 0 or more"),
    "misspelt by": ({"by": "means"}, r"by='means': no such choice. Did you mean 'mean'\? There are: mean, bounds"),
    "misspelt per": ({"per": "heads"}, r"per='heads': no such choice. Did you mean 'head'\? There are: group, head"),
    "read beyond the window": ({"n_local": 128, "read_at": 129}, "read_at=129: expected a distance from 1 to n_local"),
    "text": ({"block_size": "8"}, "block_size='8' is str, expected int"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_nonsense_settings(case: str) -> None:
    fields, message = SETTINGS[case]
    with pytest.raises(ValueError, match=message):
        InfLLM(**fields)


def test_settings_are_filled_in_from_the_config(caplog: pytest.LogCaptureFixture) -> None:
    config = tiny().config  # 512 tokens
    small = InfLLM(n_global=4, top_k=4, block_size=32)
    with caplog.at_level(logging.WARNING, "hf_longctx"):
        assert small.resolve(config) == InfLLM(n_global=4, n_local=256, top_k=4, block_size=32, read_at=128)
        assert not caplog.text
        InfLLM().resolve(config)
    assert "n_local=256 and 17 blocks of block_size=128 are more tokens at once than the 512" in caplog.text
    assert parse("infllm", ["by=bounds", "top_k=4"]) == InfLLM(by="bounds", top_k=4)
    with pytest.raises(ValueError, match="block_size=512: expected at most n_local=256"):
        InfLLM(block_size=512).resolve(config)
    windows = [smaller.n_local for _, smaller in InfLLM(n_local=8192, block_size=2048).smaller()]
    assert windows == [4096, 2048], "at least a block"


def test_a_model_with_a_window_too_small_for_a_block_is_left_as_it_was() -> None:
    model = tiny()
    before = logits_of(model, IDS)
    with pytest.raises(ValueError, match="block_size=512: expected at most"):
        InfLLM(block_size=512).apply(model)
    assert torch.equal(logits_of(model, IDS), before)


@pytest.mark.parametrize("n_local", [1, 2])
@pytest.mark.parametrize("n_global", [0, 1, 500])
def test_extreme_windows_and_more_blocks_than_there_are(n_global: int, n_local: int) -> None:
    model = tiny()
    for top_k, size in ((1, 1), (10_000, n_local)):
        with InfLLM(n_global=n_global, n_local=n_local, top_k=top_k, block_size=size).on(model):
            full = logits_of(model, IDS, use_cache=False)
            close(logits_in_parts(model, IDS, (1, 5, 6, 24), DynamicCache()), full)


def test_a_row_of_padding_only_a_short_one_and_a_text_within_the_window() -> None:
    check_rows(InfLLM(n_global=2, n_local=6, top_k=2, block_size=4), InfLLM(n_local=24, block_size=8))


def test_a_stream_refuses_it_unless_it_may_grow_and_can_leave_look_ups_out() -> None:
    model, ids = tiny(), text(1, 60)[0]
    with InfLLM(n_global=2, n_local=8, top_k=2, block_size=4).on(model):
        with pytest.raises(ValueError, match="bounded=False"):
            stream(model, ids)
        wanted = stream(model, ids, bounded=False).logits
        differs(stream(model, ids, bounded=False, look_up=False).logits, wanted)
