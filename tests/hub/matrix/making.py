"""`python -m tests.hub.matrix.making STAGE FOLDER` makes the models in FOLDER and pushes them, in its own process.

Three stages, each in the process of another user: "published" with hf_longctx, "without" where it is not installed, and
"again" with it, but without trusting what is loaded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.hub.matrix.probe import prepare
from tests.hub.matrix.rows import BRANCH, TAG

TRAINED = 64
# of the words of tests.tiny.tokenizer
TEMPLATE = (
    "{% for m in messages %}{{ '<bos> ' + m['content'] + ' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bos>' }}{% endif %}"
)
WINDOW: dict[str, Any] = {"n_global": 4, "n_local": 16}
YARN: dict[str, Any] = {"type": "yarn", "factor": 4.0}
SEGMENTS: dict[str, Any] = {"segment": 16, "overlap": 4, "question_tokens": 8}


def published(root: Path) -> None:
    """The three tiers, and what needs hf_longctx and trust to be made of them."""
    from transformers import AutoModelForCausalLM

    from hf_longctx import XL3M, LMInfinite, RopeScaling
    from hf_longctx.hub import extend, push
    from hf_longctx.models import LongCtxLlamaForCausalLM
    from tests.tiny import tiny, tokenizer

    words = tokenizer()
    words.chat_template = TEMPLATE
    for model in (tiny(max_position_embeddings=TRAINED), words):
        model.save_pretrained(root / "stock")
    extend(root / "stock", RopeScaling(**YARN), root / "native")
    extend(root / "stock", LMInfinite(**WINDOW), root / "plugin", plugin=True)
    dual = LongCtxLlamaForCausalLM.from_pretrained(root / "stock", methods=LMInfinite(**WINDOW))
    save(dual, root / "dual")
    XL3M(**SEGMENTS).store_(dual)
    save(dual, root / "xl3m")
    for name in ("native", "dual", "xl3m"):
        push(root / name, f"tester/{name}")
    push(root / "plugin", "tester/plugin", plugin=True)
    push(root / "dual", "tester/private", private=True)
    push(root / "native", "tester/branches")
    # of a folder without code: a dual-mode repository, which is the default
    push(root / "plugin", "tester/branches", revision=BRANCH, tag=TAG, update=True)
    trusted = AutoModelForCausalLM.from_pretrained("tester/dual", trust_remote_code=True)
    trusted.push_to_hub("tester/dual-again")
    adapted(trusted, root)


def adapted(base: Any, root: Path) -> None:
    """An adapter on a trusted base, by itself and merged into it."""
    import torch
    from peft import LoraConfig, get_peft_model

    from hf_longctx.hub import push

    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:  # B is zeros so far; small, so that merging rounds little
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    model.save_pretrained(root / "adapter")
    push(root / "adapter", "tester/adapter")
    save(model.merge_and_unload(), root / "merged")
    push(root / "merged", "tester/merged")


def again(root: Path) -> None:
    """What the stock class makes of dual-mode models where hf_longctx is imported; and a copy that is repaired."""
    from huggingface_hub import snapshot_download
    from transformers import AutoModelForCausalLM

    from hf_longctx.hub import push, repair

    AutoModelForCausalLM.from_pretrained("tester/dual").push_to_hub("tester/plugin-again")
    AutoModelForCausalLM.from_pretrained("tester/xl3m").push_to_hub("tester/xl3m-again")
    repair(snapshot_download("tester/without-again", local_dir=root / "repaired"))
    push(root / "repaired", "tester/repaired")


def without(root: Path) -> None:
    """What somebody without hf_longctx makes of them."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained("tester/dual").push_to_hub("tester/without-again")
    AutoModelForCausalLM.from_pretrained("tester/native").push_to_hub("tester/native-again")


def save(model: Any, folder: Path) -> None:
    """The model with its tokenizer, as users save them."""
    from transformers import AutoTokenizer

    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder.parent / "stock").save_pretrained(folder)


STAGES = {"published": ("imported", published), "without": ("absent", without), "again": ("imported", again)}

if __name__ == "__main__":
    package, make = STAGES[sys.argv[1]]
    prepare(package)
    make(Path(sys.argv[2]))
    print(json.dumps({"made": sys.argv[1]}))
