"""Train a stretched CLIP on images with long and short captions, measure it before and after, save a stock checkpoint.

    accelerate launch -m recipes.long_clip.train --config recipes/long_clip/config.yaml
    python -m recipes.long_clip.train --smoke

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from hf_longctx.clip import FineTuning, finetune, read_pairs, stretch_positions, stretch_tokenizer
from hf_longctx.clip.checkpoint import save_clip
from hf_longctx.clip.evaluation import evaluate_pairs, evaluate_retrieval, evaluate_zero_shot, read_protocol
from hf_longctx.clip.finetune import check_fresh
from hf_longctx.clip.stretch import MARK, text_length
from hf_longctx.evaluation.results import write_results
from recipes.cards import say_one_card
from recipes.config import check_training, read_yaml
from recipes.long_clip import card


def run(config: dict[str, Any], *, resume: bool = False) -> dict[str, Any]:
    """The recipe: what was measured before and after, which `report.json` in the folder `out` has too."""
    known = {"model", "keep", "ratio", "pairs", "images", "held_out", "benchmarks", "classes", "out", "training"}
    if unknown := sorted(set(config) - known):
        raise ValueError(f"{', '.join(unknown)}: not settings of this recipe, which are {', '.join(sorted(known))}.")
    if missing := sorted({"model", "pairs", "out"} - set(config)):
        raise ValueError(f"the config lacks {', '.join(missing)}. README.md says what each is.")
    check_training(config.get("training", {}), FineTuning)
    settings = FineTuning(**config.get("training", {}))
    accelerator = Accelerator()
    if accelerator.num_processes == 1 and accelerator.device.type == "cuda" and torch.cuda.device_count() > 1:
        say_one_card(torch.cuda.device_count(), "accelerate launch --multi_gpu --num_processes N uses N of them.")
    out = Path(config["out"])
    pairs = read_pairs(config["pairs"], config.get("images"))
    held = config.get("held_out", 1000)
    if not 1 < held < len(pairs):
        raise ValueError(f"held_out: {held} of {len(pairs)} pairs; expected at least 2, and some left to train on.")
    check_fresh(out / "run", resume)
    model = CLIPModel.from_pretrained(config["model"])
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    processor = AutoImageProcessor.from_pretrained(config["model"])

    def measured(limit_cuts: bool) -> dict[str, Any]:
        on = model.to(accelerator.device)
        held_out = evaluate_pairs(on, tokenizer, processor, pairs[:held], truncate=limit_cuts or settings.truncate)
        found: dict[str, Any] = {"held out": dataclasses.asdict(held_out)}
        for name, folder in config.get("benchmarks", {}).items():
            found[name] = dataclasses.asdict(
                evaluate_retrieval(on, tokenizer, processor, read_protocol(name, folder), truncate=True)
            )
        if "classes" in config:
            found["classes"] = evaluate_zero_shot(on, tokenizer, processor, config["classes"])
        return found

    report: dict[str, Any] = {}
    if accelerator.is_main_process:
        file = out / "report.json"
        report = json.loads(file.read_text(encoding="utf-8")) if resume and file.is_file() else {}
        if "before" not in report:
            report["before"] = measured(True)
            write_results(file, report)
    if not hasattr(model.config.text_config, MARK):
        stretch_positions(model, config.get("keep", 20), config.get("ratio", 4))
    stretch_tokenizer(tokenizer, text_length(model))
    # the first pairs are held out, as in the paper
    model = finetune(
        model, tokenizer, processor, pairs[held:], settings, out / "run", accelerator=accelerator, resume=resume
    )
    if accelerator.is_main_process:
        save_clip(model, config["model"], out / "model", overwrite=True)
        report["after"] = measured(False)
        write_results(out / "report.json", report)
        card.write(report, config, text_length(model), out)
    return report


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("config.yaml"))
    parser.add_argument("--resume", action="store_true", help="continue from the state in the config's `out`")
    parser.add_argument("--smoke", action="store_true", help="a tiny CLIP on rendered scenes, in a temporary folder")
    args = parser.parse_args(arguments)
    if args.smoke:
        from recipes.long_clip.smoke import check, prepare

        with tempfile.TemporaryDirectory() as folder:
            config = prepare(Path(folder))
            check(run(config), Path(config["out"]))
        return
    report = run(read_yaml(args.config), resume=args.resume)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
