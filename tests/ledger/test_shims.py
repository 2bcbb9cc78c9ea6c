"""Run-time cures: each cures what its script shows, changes nothing else, and is taken back whole, in any order."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longctx.upstream import active, applied, apply, applying
from hf_longctx.upstream.caches import given_cache
from hf_longctx.upstream.ledger import FIXED, NOT_RUN, WRONG, defects
from hf_longctx.upstream.scripts import Seen, check
from hf_longctx.upstream.shims import SHIMS, Place
from hf_longctx.upstream.shims.loading import one_at_a_time
from tests.tiny import FAMILIES, MORE_FAMILIES, VOCAB, tiny

PLACES = sorted({place for places in SHIMS.values() for place in places})
FIRST, SECOND = 10, 12  # tokens of two documents


def at(place: Place) -> Any:
    return applying._get(applying._owner(place), place.name)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = [at(place) for place in PLACES]
    yield
    assert active() == []
    assert all(now is then for now, then in zip(map(at, PLACES), before, strict=True))


def ids(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("number", SHIMS)
def test_with_its_shim_a_defect_is_gone_and_without_it_is_back(number: str) -> None:
    one = defects()[number]
    if one.seen.get(one.version) == NOT_RUN:
        pytest.skip("its script cannot run here")
    places = SHIMS[number]
    before = [at(place) for place in places]
    shim = apply(number, checked=False)
    assert [place for place in places if at(place) is before[places.index(place)]] == []
    # in this process, where the shim is
    assert check(replace(one, alone=False)) == Seen(FIXED)
    shim.undo()
    assert [at(place) for place in places] == before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["without", "its own", "given"])
@pytest.mark.parametrize("mask", [None, "ones"])
def test_packed_documents_are_what_they_are_alone(family: str, cache: str, mask: str | None) -> None:
    model = tiny(family)
    first, second = ids(2, FIRST), ids(2, SECOND, seed=1)
    given: dict[str, Any] = {"use_cache": cache != "without"}
    if cache == "given":
        given |= given_cache(model, DynamicCache(config=model.config))
    if mask:
        given["attention_mask"] = torch.ones(2, FIRST + SECOND, dtype=torch.long)
    positions = torch.cat([torch.arange(FIRST), torch.arange(SECOND)])[None]
    with torch.no_grad(), applied(["0002", "0003"]):
        packed = model(torch.cat([first, second], 1), position_ids=positions, **given).logits
        assert (packed[:, :FIRST] - model(first).logits).abs().max() <= 1e-5
        assert (packed[:, FIRST:] - model(second).logits).abs().max() <= 1e-5


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_what_is_right_stays_the_same_bit_for_bit_with_all_shims(family: str) -> None:
    def outputs() -> list[torch.Tensor]:
        model = tiny(family)
        text, mask = ids(2, 20), torch.ones(2, 20, dtype=torch.long)
        mask[0, :6] = 0  # padded on the left
        greedy = {"max_new_tokens": 6, "do_sample": False}
        with torch.no_grad():
            return [
                model(text).logits,
                model(text, use_cache=False).logits,
                model(text, attention_mask=mask).logits,
                model(text, attention_mask=torch.ones_like(mask)).logits,
                model.generate(text, attention_mask=mask, **greedy),
                model.generate(text[:1], prompt_lookup_num_tokens=3, **greedy),
            ]

    stock = outputs()
    with applied(checked=False):
        assert all(map(torch.equal, outputs(), stock))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_shims_are_undone_in_any_order_also_two_of_one_place(order: tuple[int, ...]) -> None:
    shims = [apply(number, checked=False) for number in ("0002", "0003", "0005")]
    for number, which in enumerate(order):
        shims[which].undo()
        shims[which].undo()  # changes nothing
        assert set(active()) == {shims[one] for one in order[number + 1 :]}
        # as long as one of the two is there, documents stay apart
        packed = shims[0].active or shims[1].active
        assert check(defects()["0002"]).state == (FIXED if packed else WRONG)


def test_a_shim_under_a_wrap_of_other_code_passes_through() -> None:
    place = SHIMS["0002"][0]
    owner, stock = applying._owner(place), at(place)
    shim = apply("0002", checked=False)
    wrapped = at(place)
    setattr(owner, place.name, lambda *args, **kwargs: wrapped(*args, **kwargs))
    shim.undo()
    assert check(defects()["0002"]).state == WRONG
    setattr(owner, place.name, stock)


def test_shims_go_with_their_block_also_after_an_error() -> None:
    with pytest.raises(KeyError), applied(["0002", "0005"], checked=False):
        raise KeyError(*active())
    assert active() == []
    with pytest.raises(ValueError, match="no such entry"), applied(["0002", "no-such"], checked=False):
        pass


def test_one_shim_is_named_without_a_list_and_a_name_that_is_none_applies_nothing() -> None:
    with applied("0005", checked=False) as shims:
        assert [shim.defect.id for shim in shims] == ["0005"]
    with applied(["5", "yarn-truncate-per-layer"], checked=False) as shims:
        assert len(shims) == 1


def test_a_defect_that_is_gone_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applying, "_found", lambda number: Seen(FIXED))
    with applied(["0005"]) as (shim,):
        assert not shim.active
        assert shim.skipped == "is not present here"
    monkeypatch.setattr(applying, "_found", lambda number: Seen(NOT_RUN, "needs torchvision"))
    with applied(["0005"]) as (shim,):
        assert shim.skipped == "cannot be shown here: needs torchvision"


def test_a_defect_without_a_shim_is_refused_with_what_has_one() -> None:
    with pytest.raises(
        ValueError, match=r"0004 .* has no cure at run time: it is of kind 'refused'. .* 0002, 0003, 0005"
    ):
        apply("0004")


def test_a_version_without_the_place_of_a_shim_is_said_and_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = SHIMS["0008"]
    monkeypatch.setitem(SHIMS, "0008", (first, second._replace(name="renamed")))
    with pytest.raises(NotImplementedError, match=r"has no transformers\.modeling_utils\.renamed, which its shim"):
        apply("0008", checked=False)


def test_assisted_decoding_after_a_filled_cache_is_refused_in_words() -> None:
    model, cache = tiny(), DynamicCache()
    model(ids(1, 20), **given_cache(model, cache))
    with (
        applied(["0017"], checked=False),
        pytest.raises(ValueError, match="a cache of 20 tokens: expected an empty one"),
    ):
        model.generate(ids(1, 26), **given_cache(model, cache), prompt_lookup_num_tokens=3, max_new_tokens=4)


def test_a_thread_that_loads_a_model_may_load_another_inside() -> None:
    done = threading.Thread(target=lambda: one_at_a_time(lambda: one_at_a_time(lambda: None)), daemon=True)
    done.start()
    done.join(60)
    assert not done.is_alive()


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig", "PrefixTuningConfig"])
def test_prompt_learning_writes_what_full_forwards_do(kind: str) -> None:
    import peft
    from transformers import T5Config, T5ForConditionalGeneration

    def written(model: Any, task: str, name: str, **given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        settings = {"encoder_hidden_size": 32} if kind == "PromptEncoderConfig" else {}
        model = peft.get_peft_model(model, getattr(peft, kind)(task_type=task, num_virtual_tokens=4, **settings)).eval()
        stock = model.base_model_prepare_inputs_for_generation
        got = model.generate(**given, max_new_tokens=6, do_sample=False)
        assert model.base_model_prepare_inputs_for_generation == stock
        own = given if name in given else {**given, name: torch.zeros(len(got), 1, dtype=torch.long)}
        for _ in range(6):
            last = model(**own).logits[:, -1:].argmax(-1)
            own = {**own, name: torch.cat([own[name], last], 1)}
            if name == "input_ids":
                own["attention_mask"] = torch.cat([own["attention_mask"], torch.ones_like(last)], 1)
        return got, own[name]

    text, mask = ids(2, 10), torch.ones(2, 10, dtype=torch.long)
    # PEFT tells prefix tuning no positions, so that rows with padding are others there in any release
    mask[1, :3] = int(kind == "PrefixTuningConfig")
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "initializer_factor": 3.0}
    encoding = T5Config(vocab_size=VOCAB, decoder_start_token_id=0, eos_token_id=None, **sizes)
    torch.manual_seed(0)
    with torch.no_grad(), applied("0042", checked=False):
        for model, task, name in (
            (tiny(eos_token_id=None), "CAUSAL_LM", "input_ids"),
            (T5ForConditionalGeneration(encoding), "SEQ_2_SEQ_LM", "decoder_input_ids"),
        ):
            got, right = written(model, task, name, input_ids=text, attention_mask=mask)
            assert torch.equal(got, right), task
