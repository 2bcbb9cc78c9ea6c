"""Reading without look-ups, and asking with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx import CodeLookup, LMInfinite, StreamingLLM, stream
from hf_longctx.hub import load
from tests.contract.registry import close, differs, same
from tests.tiny import logits_of, text, tiny

WINDOW = LMInfinite(n_global=2, n_local=8)
METHODS: dict[str, Any] = {
    "code_lookup": CodeLookup(n_global=2, n_local=8, top_k=4, shortlist=12, gate=None),
    "lm_infinite": LMInfinite(n_global=2, n_local=8, top_k=4, top_k_from_layer=0),
}
DOCUMENT, QUESTION = text(1, 90)[0], text(1, 6, seed=2)[0]
each = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def asked(method: Any, chunk: int = 30, layers: int = 2) -> tuple[Tensor, Tensor, list[int]]:
    """The logits after the document, those after the question, and an answer."""
    model = tiny(num_hidden_layers=layers)
    with method.on(model):
        reader = stream(model, DOCUMENT, chunk=chunk, bounded=False, look_up=False)
        after = reader.logits.clone()
        reader.read(QUESTION)
        asked = reader.logits.clone()
        return after, asked, list(reader.generate(max_new_tokens=5, do_sample=False))


@each
def test_a_document_is_read_as_by_the_window_and_a_question_finds_what_left_it(method: Any) -> None:
    model, both = tiny(), torch.cat([DOCUMENT, QUESTION])
    after, question, answer = asked(method)
    with WINDOW.on(model):
        close(after, logits_of(model, DOCUMENT[None])[0, -1])
        differs(question, logits_of(model, both[None])[0, -1])
    with method.on(model):
        differs(question, logits_of(model, both[None])[0, -1])  # which looked up while it read, too
    for chunk in (1, 7, 90):
        other = asked(method, chunk)
        close(other[0], after)
        close(other[1], question)
        assert other[2] == answer


@each
def test_in_one_layer_a_question_sees_what_a_full_forward_sees(method: Any) -> None:
    """Keys of the first layer do not depend on what was looked up."""
    model, both = tiny(num_hidden_layers=1), torch.cat([DOCUMENT, QUESTION])
    _, question, answer = asked(method, layers=1)
    with method.on(model):
        close(question, logits_of(model, both[None], use_cache=False)[0, -1])
        whole = model.generate(both[None], max_new_tokens=5, do_sample=False)
        assert whole[0, len(both) :].tolist() == answer


@each
def test_look_ups_are_on_again_after_an_error(method: Any) -> None:
    model = tiny()
    with method.on(model):
        before = logits_of(model, DOCUMENT[None])
        reader = stream(model, DOCUMENT[:20], bounded=False)
        with pytest.raises(ValueError, match="61"):
            reader.read([*DOCUMENT[:30].tolist(), 61], look_up=False)

        def source() -> Any:
            yield 5
            same(logits_of(model, DOCUMENT[None]), before, "the model looks up while the source runs")
            raise OSError("the disk is gone")

        with pytest.raises(RuntimeError, match="the disk is gone"):
            reader.read(source(), look_up=False)
        same(logits_of(model, DOCUMENT[None]), before)


@each
def test_a_method_that_comes_back_while_ids_are_made_looks_nothing_up_either(method: Any) -> None:
    model, (wanted, *_) = tiny(), asked(method)
    patch = method.apply(model)
    reader = stream(model, chunk=30, bounded=False)

    def source() -> Any:
        for at, token in enumerate(DOCUMENT.tolist()):
            if at == 60:
                patch.undo()
                method.apply(model)
            yield token

    reader.read(source(), look_up=False)
    close(reader.logits, wanted)


@pytest.mark.parametrize("method", [WINDOW, StreamingLLM(n_sink=2, window=8), None], ids=repr)
def test_methods_that_look_nothing_up_say_so_before_anything_is_read(method: Any) -> None:
    model = tiny()
    if method is not None:
        method.apply(model)
    reader = stream(model, DOCUMENT, bounded=False)
    with pytest.raises(ValueError, match=r"look_up=False: the model carries .*, which looks nothing up"):
        reader.read(QUESTION, look_up=False)
    assert reader.position == len(DOCUMENT)
    with pytest.raises(ValueError, match="look_up=False"):
        stream(model, DOCUMENT, bounded=False, look_up=False)


@pytest.mark.real_model
def test_a_real_model_finds_the_key_that_has_left_its_window() -> None:
    """A window of 256 tokens, and a text of three times as many: only that something is found is tested here."""
    try:
        model, tokenizer = load("smollm2-135m-instruct")
    except OSError as error:
        pytest.skip(f"the model cannot be had: {error}")
    model.float()
    filler = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
    fact = "The pass key is 48213. Remember it. 48213 is the pass key. "
    task = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    document = tokenizer(task + filler * 9 + fact + filler * 26).input_ids
    question = tokenizer("What is the pass key? The pass key is", add_special_tokens=False).input_ids
    answer = tokenizer(" 48213", add_special_tokens=False).input_ids
    assert len(document) > 3 * 256

    def says(method: Any, **settings: Any) -> list[int]:
        with method.on(model):
            reader = stream(model, document, bounded=False, **settings)
            reader.read(question)
            return list(reader.generate(max_new_tokens=len(answer), do_sample=False))

    assert says(CodeLookup(n_local=256, shortlist=64), look_up=False) == answer
    assert says(LMInfinite(n_local=256)) != answer
