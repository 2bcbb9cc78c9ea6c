"""train-check passes what is exact, and finds what stock transformers does to packed batches, on ranks too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from transformers import MambaConfig, MambaForCausalLM
from typer.testing import CliRunner

from hf_longctx import SequenceParallel
from hf_longctx.cli.main import app
from hf_longctx.parallel import blocks
from hf_longctx.training.batches import read_batch
from hf_longctx.training.check import Finding, train_check
from tests.hub.tiny import write_gguf

from .models import PACKED, batch, make
from .pool import Pool


def failed(found: list[Finding]) -> list[str]:
    return [finding.name for finding in found if not finding.holds]


def test_what_stock_transformers_does_to_a_packed_batch() -> None:
    model, given = make("llama"), batch([PACKED])
    assert failed(list(train_check(model, given, "no cache"))) == []
    for way in ("as given", "mask"):
        leak, *others = train_check(model, given, way)
        assert not leak.holds
        assert leak.off is not None
        assert leak.off > 0.01
        assert leak.where == "a token of document 0 changes the logits of document 1"
        assert failed(others) == ["loss", "logits", "gradients"]


def test_what_accelerate_does_to_a_packed_batch() -> None:
    """Its hooks drop the mask that keeps documents apart; one document needs none. They are gone afterwards."""
    model = make("llama")
    hooks = {name: dict(m._forward_pre_hooks) for name, m in model.named_modules()}
    leak, *others = train_check(model, batch([PACKED]), "context parallel")
    assert not leak.holds
    assert leak.where == "a token of document 0 changes the logits of document 1"
    assert failed(others) == ["loss", "logits", "gradients"]
    assert {name: dict(m._forward_pre_hooks) for name, m in model.named_modules()} == hooks
    assert failed(list(train_check(model, batch([[40]]), "context parallel"))) == []
    with pytest.raises(ValueError, match="sliding"):
        list(train_check(make("gemma3"), batch([PACKED]), "context parallel"))


def under_accelerate() -> str:
    try:
        list(train_check(make("llama"), batch([PACKED]), "context parallel"))
    except ValueError as error:
        return str(error)
    return "no error"


def test_context_parallelism_of_accelerate_needs_gpus(two: Pool) -> None:
    for said in two.run(under_accelerate):
        assert "on 2 processes and cpu: torch shares attention kernels of GPUs only. Start one process" in said


def test_one_process_under_the_switch() -> None:
    found = list(train_check(make("gemma3"), batch([PACKED]), SequenceParallel(degree=1, gather_logits=True)))
    assert failed(found) == []
    assert [finding.name for finding in found][1:3] == ["loss", f"logits of the {sum(PACKED)} tokens of rank 0"]
    assert all(finding.off is None or finding.off < 1e-5 for finding in found)


def test_rows_padded_on_the_right_and_a_batch_without_labels() -> None:
    given = batch([[20, 13], [5], [8, 1, 11]])
    given.pop("labels")
    assert failed(list(train_check(make("llama"), given, SequenceParallel(degree=1, gather_logits=True)))) == []


def test_a_recurrence_that_packing_does_not_stop() -> None:
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4))
    given = batch([[9, 7]])
    given["cu_seq_lens_q"] = torch.tensor([0, 9, 16])
    assert "documents do not see each other" in failed(list(train_check(model, given, "no cache")))


def on_a_rank() -> list[Finding]:
    switch = SequenceParallel(degree=dist.get_world_size(), cut="all", gather_logits=True)
    return list(train_check(make("llama"), batch([PACKED]), switch))


def with_a_mistake() -> list[Finding]:
    """One key of the ring is taken from the wrong place: the values of shared documents are off on one rank."""
    right = blocks.table_of

    def wrong(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return right(k, v).roll(dist.get_rank(), 0)

    with mock.patch("hf_longctx.parallel.fetch.table_of", wrong):
        switch = SequenceParallel(degree=dist.get_world_size(), kind="gather", cut="all", gather_logits=True)
        return list(train_check(make("llama"), batch([PACKED]), switch))


def test_a_mistake_among_ranks_is_found(two: Pool) -> None:
    for found in two.run(with_a_mistake):
        assert {"loss", "gradients"} <= set(failed(found))


def test_ranks(two: Pool) -> None:
    for found in two.run(on_a_rank):
        assert failed(found) == []
        assert len([finding for finding in found if "tokens of rank" in finding.name]) == 2


def test_batches_that_nothing_can_be_learnt_from() -> None:
    switch, given = SequenceParallel(degree=1, gather_logits=True), batch([PACKED])
    unlabelled = given | {"labels": torch.full_like(given["labels"], -100)}
    with pytest.raises(ValueError, match="no token of the batch is a target"):
        list(train_check(make("llama"), unlabelled, switch))
    unknown = given | {"input_ids": given["input_ids"].clone().fill_(97)}
    with pytest.raises(ValueError, match="input_ids from 97 to 97: expected 0 to 96, the vocabulary of LlamaForCausal"):
        list(train_check(make("llama"), unknown, switch))
    unknown = given | {"labels": given["labels"].clone().fill_(97)}
    with pytest.raises(ValueError, match=r"labels from 97 to 97: expected 0 to 96 \(or -100, no target\), the vocab"):
        list(train_check(make("llama"), unknown, switch))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_ids": "hello"}, r"input_ids is str \('hello'\), expected rows of token ids"),
        ({"input_ids": None}, r"input_ids is NoneType \(None\), expected rows of token ids"),
        ({"input_ids": [[1.5, 2.0]]}, "input_ids holds float32, expected whole numbers"),
        ({"input_ids": [[True, False]]}, "input_ids holds bool, expected whole numbers"),
        ({"input_ids": [[]]}, "input_ids holds no token, expected whole numbers"),
        ({"input_ids": [[[1, 2]]]}, r"input_ids of the shape \(1, 1, 2\), expected \(rows, tokens\)"),
        ({"input_ids": [[10**30]]}, "input_ids: expected numbers in rows of the same length"),
        ({"input_ids": [[1, 2, 3]], "labels": [[1, 2]]}, r"labels of the shape \(1, 2\), expected \(1, 3\)"),
        ({"input_ids": [[1, 2]], "labels": [[0.5, 2.0]]}, "labels holds float32, expected whole numbers"),
    ],
)
def test_batches_of_another_form(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "batch.json").write_text(json.dumps(given))
    with pytest.raises(ValueError, match=message):
        read_batch(tmp_path / "batch.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--degree", "2"], "--degree 2: 1 process(es) run this. Start it with `torchrun --nproc_per_node 2"),
        (["--stock", "other"], "--stock 'other': expected 'as given', 'no cache', 'mask', 'context parallel'"),
        (["--stock", "mask", "--degree", "1"], "--stock 'mask' runs stock code, which has no --degree"),
        (["--stock", "mask", "--cut", "all"], "--stock 'mask' runs stock code, which has no --degree"),
    ],
)
def test_options_are_looked_at_before_the_model(options: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "batch.json").write_text('{"input_ids": [1, 2, 3]}')
    found = CliRunner().invoke(app, ["train-check", "no-such-model", str(tmp_path / "batch.json"), *options])
    assert found.exit_code == 2, found.output
    said = " ".join(found.output.split())
    assert message in said
    assert said.count("Error:") == 1
    assert "one document after the other" not in said


def test_files(tmp_path: Path) -> None:
    (tmp_path / "row.json").write_text(json.dumps({"input_ids": [1, 2, 3], "cu_seq_lens_q": [0, 1, 3]}))
    found = read_batch(tmp_path / "row.json")
    assert found["input_ids"].tolist() == [[1, 2, 3]]
    assert found["cu_seq_lens_q"].tolist() == [0, 1, 3]
    torch.save(batch([PACKED]), tmp_path / "batch.pt")
    assert torch.equal(read_batch(tmp_path / "batch.pt")["input_ids"], batch([PACKED])["input_ids"])
    (tmp_path / "ragged.json").write_text('{"input_ids": [[1, 2, 3], [4, 5]]}')
    with pytest.raises(ValueError, match="input_ids: expected numbers in rows of the same length"):
        read_batch(tmp_path / "ragged.json")
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(ValueError, match="has no input_ids"):
        read_batch(tmp_path / "none.json")
    for name, text in {
        "broken.json": "{bad",
        "broken.pt": "{bad",
        "junk.pt": "junk",
        "empty.json": "",
        "empty.pt": "",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name} cannot be read \(.+\): expected a \.json file or a \.pt file"):
            read_batch(tmp_path / name)
    with pytest.raises(ValueError, match=r"nowhere\.pt: there is no such file. Give a \.json file or a \.pt file"):
        read_batch(tmp_path / "nowhere.pt")
    with pytest.raises(ValueError, match=r"expected a \.json file or a \.pt file"):
        read_batch(tmp_path / "batch.txt")


def test_the_command(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from hf_longctx.hub import convert

    model = str(convert(write_gguf(tmp_path / "tiny.gguf"), cache_dir=tmp_path / "cache"))
    given = {"input_ids": list(range(3, 24)), "position_ids": [*range(9), *range(12)]}
    file = tmp_path / "batch.json"
    file.write_text(json.dumps(given))
    for name in Path(model).glob("*token*"):  # as in checkpoints of a training
        name.unlink()
    good = CliRunner().invoke(app, ["train-check", model, str(file)])
    assert good.exit_code == 0, good.output
    assert "pass  documents do not see each other" in good.output
    assert "pass  gradients" in good.output
    bad = CliRunner().invoke(app, ["train-check", model, str(file), "--stock", "mask"])
    assert bad.exit_code == 1, bad.output
    assert "FAIL  documents do not see each other" in bad.output
    accelerated = CliRunner().invoke(app, ["train-check", model, str(file), "--stock", "context parallel"])
    assert accelerated.exit_code == 1, accelerated.output
    assert "FAIL  gradients" in accelerated.output
    assert "its hooks drop all masks" in accelerated.output
    unknown = CliRunner().invoke(app, ["train-check", model, str(file), "--stock", "other"])
    assert unknown.exit_code == 2
