"""Layers say what they can do: a new one works everywhere with its verbs alone, and nothing asks for a class."""

from __future__ import annotations

import ast
import copy
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import hf_longctx
from hf_longctx import PositionFree, stream
from hf_longctx.attention.inputs import AttentionInputs
from hf_longctx.attention.method import AttentionMethod
from hf_longctx.cache import KeyValues, UnrotatedLayer
from hf_longctx.cache.stock import is_bounded, is_editable, nbytes
from hf_longctx.editing.edit import edit
from hf_longctx.generation.cuda_graph import can_replay
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.masks import Causal, Window
from hf_longctx.upstream.caches import cache_out, generate_cache, given_cache
from tests.contract.registry import close
from tests.tiny import left_padded, logits_of, text, tiny

PACKAGE = Path(hf_longctx.__file__).parent


class CodedLayer(UnrotatedLayer):
    """Keeps integers, as a quantised layer does, and makes numbers of them when they are read."""

    def keep(self, new: KeyValues) -> KeyValues:
        readable = self.slots.then(new)
        self.store(readable)
        return readable

    @property
    def slots(self) -> KeyValues:
        kept = super().slots
        return dataclasses.replace(kept, k=kept.k.view(torch.float32), v=kept.v.view(torch.float32))

    def store(self, slots: KeyValues) -> None:
        super().store(dataclasses.replace(slots, k=slots.k.view(torch.int32), v=slots.v.view(torch.int32)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodedKeys(AttentionMethod):
    """Plain attention over such a cache."""

    def cache_layer(self, module: nn.Module) -> UnrotatedLayer:
        return CodedLayer(self)

    def branches(self, inputs: AttentionInputs) -> list[Branch]:
        return [inputs.branch(Causal(), inputs.keys, *inputs.true_ropes())]


class LastLayer(UnrotatedLayer):
    """Keeps the last five tokens."""

    bounded = True

    def keep(self, new: KeyValues) -> KeyValues:
        readable = self.slots.then(new)
        self.store(readable.last(5, self.padded).own())
        return readable


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastTokens(AttentionMethod):
    """Attention to them and the token itself."""

    def cache_layer(self, module: nn.Module) -> UnrotatedLayer:
        return LastLayer(self)

    def branches(self, inputs: AttentionInputs) -> list[Branch]:
        return [inputs.branch(Window(6), inputs.keys, *inputs.true_ropes())]


# not in the classes, which would register them for all tests
CodedKeys.name, LastTokens.name = "coded_keys", "last_tokens"


@pytest.fixture
def model() -> Iterator[Any]:
    model = tiny()
    with CodedKeys().on(model):
        yield model


GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def test_a_new_layer_generates_with_padding_and_in_turns(model: Any) -> None:
    texts = [text(1, n, seed=n)[0] for n in (12, 7)]
    ids, mask = left_padded(texts)
    out = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **GREEDY)
    cache = cache_out(out)
    assert {(type(layer), layer.keys.dtype) for layer in cache.layers} == {(CodedLayer, torch.int32)}
    for row, alone in enumerate(texts):
        whole = torch.cat([alone, out.sequences[row, ids.shape[1] :]])[None]
        expected = logits_of(model, whole, use_cache=False)[0, len(alone) - 1 : -1]
        close(torch.stack(out.logits)[:, row], expected, "as without a cache")
    both = torch.cat([out.sequences, text(2, 3, seed=4)], 1)
    seen = torch.cat([mask, mask.new_ones(2, both.shape[1] - mask.shape[1])], 1)
    again = model.generate(both, attention_mask=seen, **generate_cache(cache), **GREEDY)
    assert torch.equal(again[:, : both.shape[1]], both)
    assert nbytes(cache) == sum(layer.nbytes() for layer in cache.layers) > 0
    assert not can_replay(model, cache)


def test_a_new_layer_is_reordered_by_beams(model: Any) -> None:
    ids = text(2, 10)
    beams = model.generate(ids, num_beams=3, **GREEDY)
    assert torch.equal(beams, model.generate(ids, num_beams=3, use_cache=False, **GREEDY))


def test_a_new_layer_is_streamed_where_it_may_grow(model: Any) -> None:
    ids = text(1, 20)
    with pytest.raises(ValueError, match=r"2 of the 2 layers .* keep every key"):
        stream(model, ids[0])
    reader = stream(model, ids[0], chunk=6, bounded=False)
    close(reader.logits, logits_of(model, ids, use_cache=False)[0, -1], "the same text")
    written = list(reader.generate(max_new_tokens=5, do_sample=False, eos_token_id=None))
    assert written == model.generate(ids, **GREEDY)[0, 20:25].tolist()
    assert not any(is_bounded(layer) for layer in reader.cache.layers)


def test_a_new_bounded_layer_is_streamed_beside_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_longctx.streaming.rebase.REACH", 16)  # it says nothing of moving back, and is not moved
    model, ids = tiny("gemma3"), text(1, 60)
    with LastTokens().on(model):
        reader = stream(model, ids[0], chunk=7)
        close(reader.logits, logits_of(model, ids, use_cache=False)[0, -1])
        size = reader.nbytes
        assert len(list(reader.generate(max_new_tokens=9, do_sample=False, eos_token_id=None))) == 9
        assert reader.nbytes == size


def test_a_new_layer_is_copied_and_saved(model: Any) -> None:
    cache, ids, more = DynamicCache(), text(2, 9), text(2, 3, seed=2)
    logits_of(model, ids, **given_cache(model, cache))
    file = io.BytesIO()
    torch.save(cache, file)
    twins = [copy.deepcopy(cache), torch.load(io.BytesIO(file.getvalue()), weights_only=False)]
    expected = logits_of(model, more, **given_cache(model, cache))
    for twin in twins:
        assert torch.equal(logits_of(model, more, **given_cache(model, twin)), expected)


def test_a_layer_without_an_editable_view_is_refused_by_name(model: Any) -> None:
    ids, cache = text(1, 9)[0].tolist(), DynamicCache()
    logits_of(model, torch.tensor([ids]), **given_cache(model, cache))
    assert not is_editable(cache.layers[0])
    with pytest.raises(ValueError, match="CodedLayer: only dynamic caches can be edited"):
        edit(model, cache, ids, [5, *ids])


def test_a_layer_belongs_to_the_method_that_wrote_it(model: Any) -> None:
    cache = DynamicCache()
    logits_of(model, text(1, 9), **given_cache(model, cache))
    other = tiny()
    with PositionFree().on(other), pytest.raises(ValueError, match="written under CodedKeys"):
        logits_of(other, text(1, 3), **given_cache(other, cache))


# -- nothing asks for a class ----------------------------------------------------------------------------------------
def classes_of(*files: Path) -> set[str]:
    found = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    return {node.name for node in found if isinstance(node, ast.ClassDef)}


def asked_for(file: Path) -> set[str]:
    """The names that `isinstance`, `issubclass`, a comparison of types or a `case` in this file ask for."""
    asking: list[ast.AST] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            asking += node.args[1:] if node.func.id in ("isinstance", "issubclass") else []
        elif isinstance(node, ast.Compare) and "type(" in ast.unparse(node):
            asking.append(node)
        elif isinstance(node, ast.MatchClass):
            asking.append(node.cls)
    names = [name for node in asking for name in ast.walk(node)]
    return {n.id for n in names if isinstance(n, ast.Name)} | {n.attr for n in names if isinstance(n, ast.Attribute)}


OWN = {
    "cache": classes_of(*(PACKAGE / "cache").glob("*.py")),
    "sharing": classes_of(PACKAGE / "sharing" / "layers.py"),
}
# what transformers' own layers can do is known in one place
STOCK = {"DynamicLayer", "DynamicSlidingWindowLayer", "StaticLayer", "QuantizedLayer", "CacheLayerMixin"}


@pytest.mark.parametrize("room", OWN)
def test_no_other_room_asks_for_a_class_of_this_one(room: str) -> None:
    assert {"cache": {"SinkWindowLayer", "FullLayer", "Ring"}, "sharing": {"SharedLayer", "SharedCache"}}[room] <= OWN[
        room
    ]
    others = [file for file in PACKAGE.rglob("*.py") if file.relative_to(PACKAGE).parts[0] != room]
    assert len(others) > 100
    assert {str(file.relative_to(PACKAGE)): found for file in others if (found := asked_for(file) & OWN[room])} == {}


def test_classes_of_transformers_layers_are_asked_for_in_one_file() -> None:
    found = [str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if asked_for(file) & STOCK]
    assert found == ["cache/stock.py"]
