"""How many heads a CLIP in OpenAI's names has: from a config, by its published size, or asked for; never guessed."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

from hf_longctx.clip import convert, geometry, openai
from hf_longctx.clip.convert import from_openai
from tests.clip.tiny import BOS, EOS, VOCAB, long_clip_weights, openai_names, spread, texts

# image width, image heads, text width, text heads: heads of 64, and of 80, 88 and 104 as in OpenCLIP's H, g and bigG
TOWERS = {"64": (128, 2, 64, 1), "80": (160, 2, 128, 2), "88": (176, 2, 64, 2), "104": (208, 2, 128, 4)}
each_size = pytest.mark.parametrize("size", TOWERS)


def model(size: str = "80") -> CLIPModel:
    width, heads, text_width, text_heads = TOWERS[size]
    both: dict[str, Any] = {"num_hidden_layers": 2, "intermediate_size": 96, "projection_dim": 24, "hidden_act": "gelu"}
    text = {"vocab_size": VOCAB, "bos_token_id": BOS, "eos_token_id": EOS, "hidden_size": text_width}
    config = CLIPConfig(
        projection_dim=24,
        text_config={**both, **text, "num_attention_heads": text_heads},
        vision_config={**both, "hidden_size": width, "num_attention_heads": heads, "image_size": 16, "patch_size": 8},
    )
    return spread(CLIPModel(config))


def openclip_config(size: str = "80", **changes: dict[str, Any]) -> dict[str, Any]:
    width, heads, text_width, text_heads = TOWERS[size]
    vision = {"image_size": 16, "layers": 2, "width": width, "head_width": width // heads, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": VOCAB, "width": text_width, "heads": text_heads, "layers": 2}
    parts = {"vision_cfg": vision, "text_cfg": text}
    return {"model_cfg": {"embed_dim": 24, **{name: {**parts[name], **changes.get(name, {})} for name in parts}}}


def agree(folder: Path, ours: CLIPModel) -> None:
    again = CLIPModel.from_pretrained(folder).eval()
    ids, pixels = texts(7, 22, padded=77), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        one, two = (m(input_ids=ids, pixel_values=pixels) for m in (again, ours))
    torch.testing.assert_close(one.image_embeds, two.image_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.text_embeds, two.text_embeds, rtol=1e-5, atol=1e-5)


@each_size
@pytest.mark.parametrize("how", ["argument", "config beside", "openclip folder", "folder of transformers"])
def test_embeddings_are_those_of_the_models_own_heads(how: str, size: str, tmp_path: Path) -> None:
    ours, folder = model(size), tmp_path / "in"
    folder.mkdir()
    name = {"openclip folder": "open_clip_model.safetensors", "folder of transformers": "model.safetensors"}.get(how)
    save_file(openai_names(ours), folder / (name or "clip.safetensors"))
    settings: dict[str, Any] = {}
    if how == "argument":
        settings = {"heads": TOWERS[size][3::-2], "activation": "gelu"}
    elif how == "folder of transformers":
        ours.config.save_pretrained(folder)
    else:
        (folder / "open_clip_config.json").write_text(json.dumps(openclip_config(size)))
    agree(convert(folder if name else folder / "clip.safetensors", tmp_path / "out", **settings), ours)


@each_size
def test_heads_that_cannot_be_known_are_asked_for(size: str, tmp_path: Path) -> None:
    torch.save(long_clip_weights(model(size)), tmp_path / "a.pt")
    width, _, text_width, _ = TOWERS[size]
    says = (
        f"text tower of {text_width} channels in 2 layers and image tower of {width} channels.*--heads 16,16.*"
        f"open_clip_config.json beside"
    )
    with pytest.raises(ValueError, match=says):
        convert(tmp_path / "a.pt", tmp_path / "out", activation="gelu")
    with pytest.raises(ValueError, match=says):
        from_openai(long_clip_weights(model(size)), activation="gelu")
    assert not (tmp_path / "out").exists()


# image width and layers, text width and layers, and heads, as OpenAI (B, L) and OpenCLIP publish them
PUBLISHED = {
    "B": (768, 12, 512, 12, (8, 12)),
    "L": (1024, 24, 768, 12, (12, 16)),
    "H": (1280, 32, 1024, 12, (16, 16)),
    "H worldwide": (1280, 32, 1024, 24, (16, 16)),
    "g": (1408, 40, 1024, 12, (16, 16)),
    "bigG": (1664, 48, 1280, 32, (20, 16)),
    "e": (1792, 56, 1280, 36, (20, 16)),
    "M": (512, 12, 512, 12, (8, 8)),
    "S": (384, 12, 384, 12, (6, 6)),
    "B-plus": (896, 12, 640, 12, (10, 14)),
}


def sizes(width: int, layers: int, text_width: int, text_layers: int) -> openai.Sizes:
    found = openai.sizes(openai_names(model()))
    return replace(found, vision_width=width, vision_layers=layers, text_width=text_width, text_layers=text_layers)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_known_and_their_neighbours_are_not(name: str) -> None:
    width, layers, text_width, text_layers, heads = PUBLISHED[name]
    found = sizes(width, layers, text_width, text_layers)
    assert geometry.heads_of(found, None, None) == heads
    config = found.config("gelu", *geometry.heads_of(found, None, None))
    assert (config.text_config.num_attention_heads, config.vision_config.num_attention_heads) == heads
    for other in (replace(found, vision_layers=layers - 1), replace(found, text_width=text_width + 64)):
        with pytest.raises(ValueError, match="no published CLIP has"):
            geometry.heads_of(other, None, None)
    if name in ("B", "L"):
        assert geometry.activation_of(found, None, None) == "quick_gelu"
    else:  # LAION's H is gelu, DFN's is quick_gelu
        with pytest.raises(ValueError, match=r"with either activation.*--activation gelu"):
            geometry.activation_of(found, None, None)
    assert geometry.activation_of(found, "gelu", None) == "gelu"


def test_the_self_check_has_its_heads_from_elsewhere_than_the_converted_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(openai_names(model()), tmp_path / "a.pt")
    right = openai.Sizes.config
    monkeypatch.setattr(openai.Sizes, "config", lambda self, act, text, image: right(self, act, text, 2 * image))
    with pytest.raises(RuntimeError, match="image embeddings differ"):
        convert(tmp_path / "a.pt", tmp_path / "out", heads=(2, 2), activation="gelu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "settings", "says"),
    [
        ({}, {"heads": (2, 4)}, r"heads=\(2, 4\): open_clip_config.json beside the weights says \(2, 2\)"),
        ({}, {"activation": "quick_gelu"}, "activation='quick_gelu': open_clip_config.json .* says gelu"),
        ({"text_cfg": {"width": 512}}, {}, r"is of another model \(text_cfg.width is 512, of the weights 128\)"),
        ({"vision_cfg": {"layers": 3, "patch_size": 4}}, {}, "vision_cfg.layers is 3.*vision_cfg.patch_size is 4"),
        ({"text_cfg": {"pool_type": "last"}}, {}, "text_cfg.pool_type='last' is unknown to transformers' CLIP"),
        ({"text_cfg": {"no_causal_mask": True}}, {}, "text_cfg.no_causal_mask=True is unknown to"),
        ({"vision_cfg": {"act_kwargs": {"approximate": "tanh"}}}, {}, "vision_cfg.act_kwargs=.*is unknown to"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    changes: dict[str, Any], settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    torch.save(openai_names(model()), tmp_path / "a.pt")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(openclip_config(**changes)))
    with pytest.raises(ValueError, match=says):
        convert(tmp_path / "a.pt", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("heads", "says"),
    [
        ((2,), r"heads=\(2,\): expected those of the text tower and of the image tower"),
        (16, "heads=16: expected"),
        ((2, 0), r"heads=\(2, 0\): expected"),
        ((3, 2), "3 heads do not divide the 128 channels of the text tower"),
        ((2, 7), "7 heads do not divide the 160 channels of the image tower"),
    ],
)
def test_wrong_heads_are_named(heads: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_openai(openai_names(model()), heads=heads)


def test_a_conversion_whose_config_leaves_heads_out_is_held_against_the_published_size() -> None:
    said = importlib.import_module("hf_longctx.clip.convert")._configured_heads  # the function has the module's name
    towers: dict[str, Any] = {"text_config": {}, "vision_config": {}}
    assert said(CLIPConfig(), towers, sizes(768, 12, 512, 12), None) == (8, 12)  # transformers' own numbers
    config, large = CLIPConfig(vision_config={"num_attention_heads": 16}), sizes(1024, 24, 768, 12)
    with pytest.raises(ValueError, match=r"num_attention_heads in text_config.*takes 8; the .* size has 12"):
        said(config, towers, large, None)
    towers["text_config"]["num_attention_heads"] = 8
    assert said(config, towers, large, None) == (8, 16)  # it says so itself


def test_the_command_takes_heads(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from hf_longctx.cli import main as cli

    ours = model()
    torch.save(openai_names(ours), tmp_path / "a.pt")

    def run(*more: str) -> Any:
        given = ["clip", "convert", str(tmp_path / "a.pt"), "--out", str(tmp_path / "out"), "--activation", "gelu"]
        return CliRunner().invoke(cli.app, [*given, *more])

    for wrong, says in (((), "--heads 16,16"), (("--heads", "2"), "--heads 2: expected two whole numbers")):
        done = run(*wrong)
        assert done.exit_code == 2
        assert says in done.stderr
    done = run("--heads", "2,2")
    assert done.exit_code == 0, done.output
    agree(tmp_path / "out", ours)
