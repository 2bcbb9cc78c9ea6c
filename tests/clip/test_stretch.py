"""Stretched models: short texts as before, long ones taken, saved as stock checkpoints; wrong input changes nothing."""

from __future__ import annotations

import copy
import json
import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, CLIPTextModelWithProjection, Siglip2Processor

from hf_longctx.clip import stretch_checkpoint, stretch_positions, stretch_table, stretch_tokenizer
from tests.clip.tiny import (
    BIDIRECTIONAL,
    BOS,
    CAUSAL,
    EOS,
    VOCAB,
    clip,
    embed,
    openai_names,
    saved,
    spread,
    text_tower,
    texts,
    tokenizer,
)


@pytest.fixture(autouse=True)
def no_warning_unless_asked_for() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.mark.parametrize("kind", CAUSAL)
def test_short_texts_are_as_before_and_long_ones_are_taken(kind: str) -> None:
    model = CAUSAL[kind]()
    short, long = texts(3, 11, 20, padded=20), texts(240, 131, padded=248)
    before, padded = embed(model, short), embed(model, nn.functional.pad(short, (0, 57)))
    with pytest.raises(ValueError, match="max_position_embeddings"):
        embed(model, long)
    assert stretch_positions(model) is model
    assert torch.equal(embed(model, short), before)
    assert torch.equal(embed(model, nn.functional.pad(short, (0, 57))), padded)
    # another padded length is another shape of matrix product
    torch.testing.assert_close(embed(model, nn.functional.pad(short, (0, 228))), before, rtol=1e-5, atol=1e-5)
    far = long.clone()
    far[0, 235] = 5 if far[0, 235] != 5 else 6
    assert (embed(model, far) - embed(model, long)).abs().max() > 1e-4, "a word at 235 counts"
    with pytest.raises(ValueError, match="max_position_embeddings: 248"):
        embed(model, texts(249, padded=249))


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_model_stretched_in_inference_mode_can_be_trained(kind: str) -> None:
    model = CAUSAL[kind]()
    other = copy.deepcopy(model)
    with torch.inference_mode():
        stretch_positions(model)
    stretch_positions(other)
    long = texts(240, 131, padded=248)
    for one in (model, other):
        out = one.get_text_features(input_ids=long) if kind == "clip" else one(input_ids=long)
        (out.text_embeds if "text_embeds" in out else out.pooler_output).square().sum().backward()
    gradients = [{n: p.grad for n, p in one.named_parameters() if p.grad is not None} for one in (model, other)]
    name = next(n for n in gradients[1] if "vision" not in n and n.endswith("position_embedding.weight"))
    assert torch.equal(gradients[0][name], gradients[1][name])


@pytest.mark.parametrize("kind", BIDIRECTIONAL)
def test_siglip_is_stretched_with_the_reason_to_train_it(kind: str) -> None:
    model = BIDIRECTIONAL[kind]()
    before = embed(model, texts(10, padded=64))
    with pytest.warns(UserWarning, match="both directions and pools its last position.*train"):
        stretch_positions(model)
    length = model.state_dict()[next(n for n in model.state_dict() if n.endswith("position_embedding.weight"))].shape[0]
    assert length == 196  # 64 rows
    assert embed(model, texts(190, padded=196)).shape == before.shape


@pytest.mark.parametrize("kind", [*CAUSAL, *BIDIRECTIONAL])
def test_table_config_and_buffer_change_together(kind: str) -> None:
    warnings.filterwarnings("ignore", message=".*both directions")
    model = {**CAUSAL, **BIDIRECTIONAL}[kind]().train()
    (name, table), *_ = [
        (n, p.detach().clone())
        for n, p in model.named_parameters()
        if "token" not in n and n.endswith("position_embedding.weight") and "vision" not in n
    ]
    others = {n: p.detach().clone() for n, p in model.named_parameters() if n != name}
    stretch_positions(model, keep=7, ratio=3)
    length = 7 + 3 * (len(table) - 7)
    after = dict(model.named_parameters())
    assert torch.equal(after[name], stretch_table(table, 7, 3))
    assert after[name].requires_grad
    assert all(torch.equal(after[n], p) for n, p in others.items())
    assert all(module.training for module in model.modules()), "looking at the model left its mode"
    config = getattr(model.config, "text_config", model.config)
    assert config.max_position_embeddings == length
    buffers = {n: b for n, b in model.named_buffers() if n.endswith("position_ids") and "vision" not in n}
    assert [b.tolist() for b in buffers.values()] == [[list(range(length))]]
    assert not any(n in model.state_dict() for n in buffers)


def test_frozen_half_precision_and_copies() -> None:
    model = clip().to(torch.bfloat16).requires_grad_(False)
    other = copy.deepcopy(model)
    stretch_positions(model)
    table = model.text_model.embeddings.position_embedding.weight
    assert (table.dtype, table.requires_grad) == (torch.bfloat16, False)
    assert other.config.text_config.max_position_embeddings == 77
    assert embed(other, texts(5, padded=77)).shape == (1, 24)


def test_projection_of_a_wrong_text_config_is_mended(tmp_path: Path) -> None:
    model = clip(projection_dim=512)
    ids = texts(9, 18, padded=20)
    before = embed(model, ids)
    stretch_positions(model).save_pretrained(tmp_path)
    tower = CLIPTextModelWithProjection.from_pretrained(tmp_path)
    assert torch.equal(embed(tower, ids), before)


STOCK = """
import sys, torch, transformers
from transformers import AutoTokenizer, {cls}
model = {cls}.from_pretrained("{folder}").eval()
ids = torch.load("{folder}/../ids.pt")
with torch.no_grad():
    if hasattr(model, "get_text_features"):
        out = [model.get_text_features(input_ids=x).pooler_output for x in ids]
    else:
        out = [(y.text_embeds if "text_embeds" in y else y.pooler_output) for y in (model(input_ids=x) for x in ids)]
torch.save(out, "{folder}/../out.pt")
text = AutoTokenizer.from_pretrained("{folder}")(" ".join("abcde" * 80), truncation=True, padding="max_length")
print(len(text["input_ids"]), "hf_longctx" in sys.modules)
"""


@pytest.mark.parametrize("kind", CAUSAL)
def test_plain_transformers_reads_the_checkpoint(kind: str, tmp_path: Path) -> None:
    model, ids = CAUSAL[kind](), [texts(7, 20, padded=77), texts(240, 30, padded=248)]
    source, out = saved(model, tmp_path / "source"), tmp_path / "out"
    before = embed(model, ids[0])
    assert stretch_checkpoint(source, out) == out
    torch.save(ids, tmp_path / "ids.pt")
    code = STOCK.format(cls=type(model).__name__, folder=out)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["248", "False"]
    short, long = torch.load(tmp_path / "out.pt")
    assert torch.equal(short, before)
    torch.testing.assert_close(long, embed(stretch_positions(model), ids[1]), rtol=1e-6, atol=1e-6)
    assert (out / "preprocessor_config.json").read_text() == (source / "preprocessor_config.json").read_text()
    assert json.loads((out / "config.json").read_text())["architectures"] == [type(model).__name__]


def test_path_is_loaded_as_the_class_that_was_saved(tmp_path: Path) -> None:
    model = stretch_positions(saved(CAUSAL["projected"](), tmp_path))
    assert type(model) is CLIPTextModelWithProjection
    assert model.text_projection.weight.shape == (24, 64)


def test_tokenizer_and_processor_are_set_and_stay_so(tmp_path: Path) -> None:
    class Processor:
        def __init__(self) -> None:
            self.tokenizer = tokenizer()

    class Cutting(Processor):
        text_kwargs = {"padding": "max_length", "max_length": 64}  # noqa: RUF012  (as transformers declares it)

    plain, cutting, alone = Processor(), Cutting(), tokenizer()
    assert stretch_tokenizer(plain, 248) is plain
    assert stretch_tokenizer(alone, 248) is alone
    stretch_tokenizer(cutting, 208)
    assert "max_length" not in plain.tokenizer.init_kwargs
    assert cutting.tokenizer.init_kwargs["max_length"] == 208
    for one in (plain.tokenizer, alone):
        one.save_pretrained(tmp_path)
        again = AutoTokenizer.from_pretrained(tmp_path)
        assert again.model_max_length == 248
        assert len(again("a b c d e " * 100, truncation=True)["input_ids"]) == 248
    for wrong in (0, True, 2.5):
        with pytest.raises(ValueError, match="whole number of tokens"):
            stretch_tokenizer(alone, wrong)
    with pytest.raises(ValueError, match="expected a tokenizer"):
        stretch_tokenizer(clip(), 248)


def test_a_processor_of_images_and_text_stays_whole(tmp_path: Path) -> None:
    from PIL import Image
    from transformers import AutoProcessor, CLIPProcessor

    images = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    size = {"height": 16, "width": 16}
    before = CLIPProcessor(images(size={"shortest_edge": 16}, crop_size=size), tokenizer())
    before.save_pretrained(saved(clip(), tmp_path / "source"))
    (tmp_path / "source/preprocessor_config.json").unlink()  # newer files hold it in processor_config.json
    after = AutoProcessor.from_pretrained(stretch_checkpoint(tmp_path / "source", tmp_path / "out"))
    picture = Image.new("RGB", (30, 20), (200, 10, 10))
    ours = after(text=["a b " * 400], images=picture, truncation=True, return_tensors="pt")
    assert ours["input_ids"].shape == (1, 248)
    assert torch.equal(ours["pixel_values"], before(text=["a"], images=picture, return_tensors="pt")["pixel_values"])


def test_a_processor_that_cuts_text_itself_is_told_through_its_tokenizer(tmp_path: Path) -> None:
    warnings.filterwarnings("ignore", message=".*both directions")
    source = saved(BIDIRECTIONAL["siglip2"](), tmp_path / "source", 64)
    (source / "preprocessor_config.json").write_text(json.dumps({"processor_class": "Siglip2Processor"}))
    again = AutoTokenizer.from_pretrained(stretch_checkpoint(source, tmp_path / "out"))
    processor = Siglip2Processor.__new__(Siglip2Processor)  # making one needs an image processor
    processor.tokenizer = again
    settings = processor._merge_kwargs(processor.valid_processor_kwargs, again.init_kwargs)["text_kwargs"]
    assert settings["max_length"] == again.model_max_length == 196


@pytest.mark.parametrize("family", ["OwlViTModel", "CLIPSegModel", "MetaClip2Model"])
def test_other_models_with_clips_text_tower(family: str) -> None:
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    kind = getattr(transformers, family)
    text = {**small, "vocab_size": VOCAB, "bos_token_id": BOS, "eos_token_id": EOS, "max_position_embeddings": 77}
    tower = spread(kind(kind.config_class(text_config=text, vision_config=small)))

    def hidden(ids: torch.Tensor) -> torch.Tensor:
        return tower.text_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

    short = texts(9, padded=20)
    before = hidden(short)
    stretch_positions(tower)
    assert torch.equal(hidden(short), before)
    assert hidden(texts(240, padded=248)).shape[1] == 248


def test_adapters_on_the_tower_are_kept() -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(clip(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    inner, ids = adapted.base_model.model, texts(9, 20, padded=20)
    before = embed(inner, ids)
    stretch_positions(adapted)
    assert torch.equal(embed(inner, ids), before)
    assert inner.config.text_config.max_position_embeddings == 248


def test_readme_lines_run_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny CLIP in a folder of that name."""
    readme = (Path(__file__).parents[2] / "docs/clip.md").read_text(encoding="utf-8")
    (code,) = [one for one in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "stretch_checkpoint(" in one]
    monkeypatch.chdir(tmp_path)
    saved(clip(eos_token_id=53, bos_token_id=52), tmp_path / "openai/clip-vit-base-patch32")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["words"]["input_ids"].shape == (1, 248)
    assert names["features"].shape == (1, 24)


def test_checkpoint_without_a_vocabulary_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text_tower().save_pretrained(tmp_path / "encoder")
    with caplog.at_level(logging.WARNING, "hf_longctx"):
        stretch_checkpoint(tmp_path / "encoder", tmp_path / "out")
    assert "no tokenizer was found" in caplog.text
    assert not list((tmp_path / "out").glob("token*"))


@pytest.mark.parametrize("prefix", ["", "text."])
@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_openclip_checkpoints(prefix: str, file: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    state = {n if n.startswith(("visual", "logit")) else prefix + n: t for n, t in openai_names(clip()).items()}
    table = state[f"{prefix}positional_embedding"].clone()
    (save_file if file.endswith("safetensors") else torch.save)(state, source / file)
    settings = {"model_cfg": {"embed_dim": 24, "text_cfg": {"context_length": 77, "width": 64}}, "preprocess_cfg": {}}
    (source / "open_clip_config.json").write_text(json.dumps(settings))
    tokenizer().save_pretrained(source)
    out = stretch_checkpoint(source, tmp_path / "out", keep=10, ratio=2)
    after = load_file(out / "open_clip_model.safetensors")
    assert torch.equal(after.pop(f"{prefix}positional_embedding"), stretch_table(table, 10, 2))
    assert all(
        torch.equal(after[n], t) for n, t in state.items() if not n.endswith("positional_embedding") or "visual" in n
    )
    config = json.loads((out / "open_clip_config.json").read_text())
    assert config["model_cfg"] == {"embed_dim": 24, "text_cfg": {"context_length": 144, "width": 64}}
    assert AutoTokenizer.from_pretrained(out).model_max_length == 144
    after[f"{prefix}positional_embedding"] = torch.randn(144, 64)  # as training would
    save_file(after, out / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match=r"was stretched before .from=77, keep=10, ratio=2"):
        stretch_checkpoint(out, tmp_path / "again")
    settings["model_cfg"]["text_cfg"]["no_causal_mask"] = True  # type: ignore[index]
    (source / "open_clip_config.json").write_text(json.dumps(settings))
    with pytest.warns(UserWarning, match="this OpenCLIP model reads text in both directions.*train"):
        stretch_checkpoint(source, tmp_path / "siglip")
    settings["model_cfg"]["text_cfg"]["embed_cls"] = True  # type: ignore[index]
    (source / "open_clip_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="CoCa's, with a class token"):
        stretch_checkpoint(source, tmp_path / "coca")
    assert not (tmp_path / "coca").exists()


def test_state_dict_is_stretched_in_place() -> None:
    state = openai_names(clip())
    assert stretch_positions(state) is state
    assert len(state["positional_embedding"]) == 248
    with pytest.raises(ValueError, match="no table of text positions"):
        stretch_positions({"visual.positional_embedding": torch.randn(5, 4)})
    with pytest.raises(ValueError, match="are for `convert`"):
        stretch_positions({"positional_embedding": torch.randn(5, 4), "positional_embedding_res": torch.randn(5, 4)})
