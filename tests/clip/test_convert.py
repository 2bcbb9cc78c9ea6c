"""Long-CLIP's files, made from a tiny CLIP by the inverse name map, become that CLIP again; wrong files are named."""

from __future__ import annotations

import importlib
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

import hf_longctx.clip
from hf_longctx.clip import openai, stretch_positions, stretch_table
from tests.clip.tiny import HEADS, clip, long_clip_weights, openai_names, projected, saved, texts, tokenizer

convert_module = importlib.import_module("hf_longctx.clip.convert")  # the function has the module's name
HF_RES = "text_model.embeddings.position_embedding_res"


def convert(file: Any, out: Path, **settings: Any) -> Path:
    told = {} if Path(file).is_dir() else {"heads": HEADS}  # a folder has a config
    return hf_longctx.clip.convert(file, out, **told, **settings)


@pytest.fixture
def model() -> CLIPModel:
    return clip(max_position_embeddings=248)


def scores(model: CLIPModel) -> Tensor:
    chance = torch.Generator().manual_seed(3)
    pixels = torch.randn(3, 3, 16, 16, generator=chance)
    torch.manual_seed(4)
    with torch.no_grad():
        return model(input_ids=texts(7, 22, 140, 248, padded=248), pixel_values=pixels).logits_per_image


def reloaded(folder: Path) -> CLIPModel:
    return CLIPModel.from_pretrained(folder).eval()


@pytest.mark.parametrize("file", ["longclip.pt", "longclip.safetensors"])
def test_two_tables_become_one_and_logits_are_equal(model: CLIPModel, file: str, tmp_path: Path) -> None:
    (save_file if file.endswith("safetensors") else torch.save)(long_clip_weights(model), tmp_path / file)
    out = convert(tmp_path / file, tmp_path / "out")
    again = reloaded(out)
    torch.testing.assert_close(scores(again), scores(model), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in model.state_dict().items())
    text = again.config.text_config
    assert (text.max_position_embeddings, text.eos_token_id, text.projection_dim) == (248, 97, 24)
    images = json.loads((out / "preprocessor_config.json").read_text())
    assert images["crop_size"] == {"height": 16, "width": 16}
    with pytest.raises(ValueError, match="was stretched before"):
        stretch_positions(again)


@pytest.mark.parametrize("wrap", ["model", "state_dict", "module."])
def test_what_training_scripts_put_around_the_weights(model: CLIPModel, wrap: str, tmp_path: Path) -> None:
    state: Any = {**long_clip_weights(model), "context_length": torch.tensor(248), "vocab_size": torch.tensor(98)}
    state = {f"module.{n}": t for n, t in state.items()} if wrap == "module." else {wrap: state, "epoch": 3}
    torch.save(state, tmp_path / "a.pt")
    torch.testing.assert_close(
        scores(reloaded(convert(tmp_path / "a.pt", tmp_path / "out"))), scores(model), rtol=1e-6, atol=1e-6
    )


def test_geometric_parametrisation_is_folded(model: CLIPModel, tmp_path: Path) -> None:
    state = long_clip_weights(model)
    for name in [name for name in state if ".mlp." in name and name.endswith("weight")]:
        weight, layer = state.pop(name), name.removesuffix(".weight")
        state[f"{layer}.r"] = weight.norm(dim=1, keepdim=True)
        state[f"{layer}.theta"] = F.normalize(weight, dim=1) * 1.7
    torch.save(state, tmp_path / "gmp.pt")
    again = reloaded(convert(tmp_path / "gmp.pt", tmp_path / "out"))
    torch.testing.assert_close(scores(again), scores(model), rtol=1e-4, atol=1e-4)


def test_half_precision_stays(model: CLIPModel, tmp_path: Path) -> None:
    torch.save({n: t.half() for n, t in long_clip_weights(model).items()}, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "out")
    assert CLIPModel.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.float16
    mixed = {n: t.half() if "mlp" in n else t for n, t in long_clip_weights(model).items()}
    torch.save(mixed, tmp_path / "b.pt")
    convert(tmp_path / "b.pt", tmp_path / "mixed")
    assert CLIPModel.from_pretrained(tmp_path / "mixed", dtype="auto").dtype == torch.float32


def test_reference_forward_is_the_models() -> None:
    model = clip().requires_grad_(False)
    state, ids, pixels = openai_names(model), texts(5, 77, 30, padded=77), torch.randn(2, 3, 16, 16)
    for activation in ("quick_gelu", "gelu"):
        for part in (model.config.text_config, model.config.vision_config):
            part.hidden_act = activation
        fresh = CLIPModel(model.config).eval()
        fresh.load_state_dict(model.state_dict())
        with torch.no_grad():
            text, image = fresh.get_text_features(ids).pooler_output, fresh.get_image_features(pixels).pooler_output
        torch.testing.assert_close(openai.encode_text(state, ids, 20, activation, 1), text, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(openai.encode_image(state, pixels, activation, 2), image, rtol=1e-4, atol=1e-4)


def test_a_conversion_that_differs_is_not_saved(
    model: CLIPModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(long_clip_weights(model), tmp_path / "a.pt")
    right = openai.to_transformers

    def swapped(state: Any) -> dict[str, Tensor]:
        out = right(state)
        q, k = (f"text_model.encoder.layers.1.self_attn.{letter}_proj.weight" for letter in "qv")
        return {**out, q: out[k], k: out[q]}

    monkeypatch.setattr(openai, "to_transformers", swapped)
    with pytest.raises(RuntimeError, match="text embeddings differ from the file's by"):
        convert(tmp_path / "a.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "inner text_model"])
@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_hub_conversion_with_both_tables(model: CLIPModel, nested: bool, suffix: str, tmp_path: Path) -> None:
    source = saved(model, tmp_path / "source", 248)
    both = long_clip_weights(model)
    state = dict(model.state_dict())
    state["text_model.embeddings.position_embedding.weight"] = both["positional_embedding"]
    state[HF_RES + suffix] = both["positional_embedding_res"]
    if nested:
        state = {n.replace("text_model.", "text_model.text_model.", 1): t for n, t in state.items()}
    save_file({n: t.contiguous() for n, t in state.items()}, source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "longclip", "architectures": ["LongCLIPModel"]}
    config["text_config"] |= {"model_type": "longclip_text_model", "max_position_embeddings": 77}
    (source / "config.json").write_text(json.dumps(config))
    for given, name in ((source, "out"), (source / "model.safetensors", "from-file")):
        out = convert(given, tmp_path / name)
        torch.testing.assert_close(scores(reloaded(out)), scores(model), rtol=1e-6, atol=1e-6)
        assert AutoTokenizer.from_pretrained(out).model_max_length == 248


def test_hub_conversions_are_held_against_the_reference_too(
    model: CLIPModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, merged = saved(model, tmp_path / "source", 248), convert_module._merged
    monkeypatch.setattr(convert_module, "_merged", lambda table, *rest: merged(table, *rest).flip(0))
    with pytest.raises(RuntimeError, match="text embeddings differ from the file's by"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    other = clip(max_position_embeddings=248, num_attention_heads=4, eos_token_id=2, hidden_act="gelu")
    out = convert(saved(other, tmp_path / "other", 248), tmp_path / "other-out")
    torch.testing.assert_close(scores(reloaded(out)), scores(other), rtol=1e-6, atol=1e-6)
    unknown = saved(clip(max_position_embeddings=248, hidden_act="relu"), tmp_path / "unknown", 248)
    convert(unknown, tmp_path / "unknown-out")
    assert "no reference forward knows quick_gelu and relu, so the conversion was not checked" in caplog.text


@pytest.mark.parametrize("kind", ["one table", "untrained second table", "transformers' names"])
def test_lost_trained_rows_are_recognised(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    short = clip()
    table = stretch_table(openai_names(short)["positional_embedding"])
    file = tmp_path / "a.pt"
    if kind == "transformers' names":
        file = saved(stretch_positions(short), tmp_path / "source", 248)
    else:
        more = {} if kind == "one table" else {"positional_embedding_res": table}
        torch.save({**openai_names(short), "positional_embedding": table, **more}, file)
    with pytest.raises(ValueError, match=r"rows 20 to 247 .* plain interpolation.*original .pt"):
        convert(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with caplog.at_level(logging.WARNING, "hf_longctx"):
        convert(file, tmp_path / "out", allow_interpolated=True)
    assert "plain interpolation" in caplog.text
    assert reloaded(tmp_path / "out").config.text_config.max_position_embeddings == 248


def test_tokenizer_of_another_folder_is_stretched(model: CLIPModel, tmp_path: Path) -> None:
    torch.save(long_clip_weights(model), tmp_path / "a.pt")
    tokenizer().save_pretrained(tmp_path / "tok")
    out = convert(tmp_path / "a.pt", tmp_path / "out", tokenizer=tmp_path / "tok")
    assert len(AutoTokenizer.from_pretrained(out)("a b " * 300, truncation=True)["input_ids"]) == 248


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    for name, write in (("a.pt", torch.save), ("b.pt", lambda x, f: f.write_bytes(pickle.dumps(x)))):
        write({"positional_embedding": Evil()}, tmp_path / name)
        with pytest.raises(ValueError, match=r"code that loading would run.*safetensors"):
            convert(tmp_path / name, tmp_path / "out")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(ValueError, match="holds more than tensors"):
        convert(tmp_path / "module.pt", tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def without(name: str) -> Any:
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("ln_final.bias"), "lacks ln_final.bias"),
        (without("transformer.resblocks.0.attn.in_proj_weight"), "lacks transformer.resblocks.0.attn.in_proj_weight"),
        (without("positional_embedding"), "lacks positional_embedding"),
        (lambda state: {**state, "extra.weight": torch.ones(1)}, "has unknown extra.weight"),
        (lambda state: {"a": torch.ones(1)}, "lacks ln_final.bias, .* more and has unknown a"),
        (lambda state: {**state, "visual.layer1.0.conv1.weight": torch.ones(1)}, "image tower is a ResNet"),
        (lambda state: {**state, "positional_embedding_res": torch.ones(77, 64)}, r"\[248, 64\] and \[77, 64\]"),
        (lambda state: {"epoch": 3}, "expected a state dict"),
        (lambda state: [1, 2], "expected a state dict.*list"),
    ],
)
def test_wrong_state_dicts_are_named(model: CLIPModel, change: Any, says: str, tmp_path: Path) -> None:
    torch.save(change(long_clip_weights(model)), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=says):
        convert(tmp_path / "a.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_wrong_input_is_named(model: CLIPModel, tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    torch.save(long_clip_weights(model), file)
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00\x00")
    (tmp_path / "cut.pt").write_bytes(file.read_bytes()[:1000])
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text("{}")
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, tmp_path / "alone.safetensors")
    projected(max_position_embeddings=248).save_pretrained(tmp_path / "tower")
    ends = clip().config.to_dict()
    ends["text_config"] = {**ends["text_config"], "max_position_embeddings": 248, "eos_token_id": 1}
    for name, config in (
        ("broken", "{"),
        ("ends", json.dumps(ends)),
        ("other", json.dumps(clip().config.to_dict() | {"projection_dim": 8})),
    ):
        (saved(model, tmp_path / name, 248) / "config.json").write_text(config)
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (tmp_path / "cut.safetensors", {}, ValueError, "cut short, damaged"),
        (tmp_path / "cut.pt", {}, ValueError, "refused"),
        (tmp_path / "none", {}, FileNotFoundError, "neither model.safetensors nor"),
        (tmp_path / "alone.safetensors", {}, FileNotFoundError, "need the config.json beside them"),
        (tmp_path / "nowhere.pt", {}, FileNotFoundError, "there is no such file"),
        ("weights/nowhere.pt", {}, FileNotFoundError, "there is no such file"),  # looks like a Hub id, and is none
        ("nowhere", {}, FileNotFoundError, "there is no such file or folder"),
        (tmp_path / "tower", {}, ValueError, "weights of a text tower alone. Convert the whole model"),
        (tmp_path / "ends", {}, ValueError, "the config's end token is 1, and Long-CLIP pools at the largest id"),
        (tmp_path / "broken", {}, ValueError, "broken/config.json is no JSON"),
        (tmp_path / "other", {}, ValueError, "weights and config do not belong together .*from one checkpoint"),
        (file, {"keep": 248}, ValueError, "keep=248"),
        (file, {"activation": "relu"}, ValueError, "activation='relu'"),
        (file, {"tokenizer": tmp_path / "nowhere"}, FileNotFoundError, "there is no such folder"),
    ]
    for given, settings, error, says in cases:
        with pytest.raises(error, match=says):
            convert(given, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="is not empty"):
        convert(file, tmp_path / "none")


def test_commands(model: CLIPModel, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from hf_longctx.cli import main as cli

    def run(*arguments: Any) -> Any:
        return CliRunner().invoke(cli.app, ["clip", *map(str, arguments)])

    torch.save(long_clip_weights(model), tmp_path / "a.pt")
    done = run("convert", tmp_path / "a.pt", "--out", tmp_path / "converted", "--heads", "1,2")
    assert done.exit_code == 0, done.output
    assert reloaded(tmp_path / "converted").config.text_config.max_position_embeddings == 248
    source = saved(clip(), tmp_path / "source")
    done = run("stretch", source, "--out", tmp_path / "stretched", "--keep", 30, "--ratio", 2)
    assert done.exit_code == 0, done.output
    assert reloaded(tmp_path / "stretched").config.text_config.max_position_embeddings == 124
    again = run("stretch", tmp_path / "stretched", "--out", tmp_path / "again")
    assert again.exit_code == 2
    (line,) = again.stderr.strip().splitlines()[-1:]
    assert line.startswith("Error: the table of 124 text positions was stretched before")


def test_importing_the_package_does_not_load_clip() -> None:
    code = "import sys, hf_longctx, hf_longctx.cli.main; print('hf_longctx.clip' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
