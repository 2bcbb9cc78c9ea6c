"""What `train.py --smoke` trains and on what: a tiny CLIP of 77 tokens, and rendered scenes as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

from hf_longctx.clip.stretch import text_length
from recipes.expected import hold

from . import scene_captions as captions
from .miniature import SMOKE, build
from .scenes import SIDE, draw, render

HERE = Path(__file__).parent


def prepare(folder: Path, count: int = 160) -> dict[str, Any]:
    """A model and pictures with captions in `folder`; the recipe's config for them."""
    write_model(folder / "clip")
    write_pairs(folder / "pairs", count)
    config: dict[str, Any] = yaml.safe_load((HERE / "config.yaml").read_text(encoding="utf-8"))
    config |= {"model": str(folder / "clip"), "pairs": str(folder / "pairs/captions.jsonl"), "held_out": 32}
    config["training"] |= {"batch": 64, "epochs": 6, "learning_rate": 3e-3, "warmup": 2, "components": 16, "workers": 0}
    return {key: value for key, value in config.items() if key not in ("images", "benchmarks", "classes")} | {
        "out": str(folder / "out")
    }


def write_model(folder: Path) -> None:
    """A CLIP of random weights with a tokenizer of whole words and an image processor."""
    build(SMOKE, 77).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(captions.WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(captions.WORDS[i], i) for i in (captions.START, captions.END)]
    words.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=special)
    named = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=77, **named).save_pretrained(folder)
    size = {"shortest_edge": SIDE}
    CLIPImageProcessor(size=size, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)


def write_pairs(folder: Path, count: int) -> None:
    """`count` scenes as PNG files, and `captions.jsonl`."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    scenes = draw(count, generator)
    pictures = (255 * render(scenes)).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    long, short = captions.long(scenes, generator, 248), captions.short(scenes, generator, 77)
    with open(folder / "captions.jsonl", "w", encoding="utf-8") as file:
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / f"{i}.png")
            told = {"caption": captions.text_of(long.ids[i]), "short": captions.text_of(short.ids[i])}
            file.write(json.dumps({"image": f"{i}.png", **told}) + "\n")


def check(report: dict[str, Any], out: Path) -> None:
    """Hold what came out against expected.json; SystemExit where it is off."""
    from transformers import AutoTokenizer, CLIPModel

    lines = [json.loads(line) for line in (out / "run/log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["long"] + line["short"] for line in lines]
    found = {
        "last loss over first": losses[-1] / losses[0],
        "positions": text_length(CLIPModel.from_pretrained(out / "model")),
        "tokens": AutoTokenizer.from_pretrained(out / "model").model_max_length,
        "captions held out": report["after"]["held out"]["long"]["captions"],
    }
    print(json.dumps(found))
    hold(found, HERE / "expected.json")
