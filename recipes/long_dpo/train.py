"""Teach a causal language model which of two long answers is better (DPO), each pair shared by several processes.

    accelerate launch --config_file recipes/accelerate/sequence_parallel_2.yaml -m recipes.long_dpo.train
    accelerate launch --config_file recipes/accelerate/sequence_parallel_2.yaml -m recipes.long_dpo.train --smoke

See README.md beside this file.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from hf_longctx import SequenceParallelMixin
from hf_longctx.hub import load
from hf_longctx.training.processes import is_first
from recipes.config import check_keys
from recipes.long_dpo.pairs import read_pairs, tokens_of
from recipes.resuming import check_fresh
from recipes.shared_batches import arguments, command, keep

KNOWN = {"model", "pairs", "longest", "held_out", "degree", "kind", "out", "training"}
COMPARED = ("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")
logger = logging.getLogger("hf_longctx")


def run(config: dict[str, Any], *, resume: bool = False) -> dict[str, Any]:
    """The recipe: what `report.json` in the folder `out` has too. Every process calls it."""
    check_keys(config, KNOWN)
    out = Path(config["out"])
    check_fresh(out, resume)
    pairs = read_pairs(config["pairs"])
    DPOConfig, DPOTrainer, Dataset = needed()
    args = DPOConfig(**arguments(config, out / "run", max_length=None))
    set_seed(args.seed)
    # Trainer moves them
    model, tokenizer = load(config["model"], dtype=torch.float32, device="cpu")
    reference, _ = load(config["model"], dtype=torch.float32, device="cpu")
    kept = fitting(pairs, tokenizer, config, model.config.get_text_config().max_position_embeddings)
    held = config["held_out"]
    if not 0 < held < len(kept):
        raise ValueError(f"held_out: {held} of {len(kept)} pairs; expected at least 1, and some left to train on.")

    class SharedDPOTrainer(SequenceParallelMixin, DPOTrainer):
        pass

    trainer = SharedDPOTrainer(
        model=model,
        # without it TRL loads what config._name_or_path names, which knows nothing of GGUF files and methods
        ref_model=reference,
        args=args,
        train_dataset=Dataset.from_list(kept[:-held]),
        eval_dataset=Dataset.from_list(kept[-held:]),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=resume)
    report = {
        "processes": args.world_size,
        "degree": trainer.get_cp_size(),
        "pairs": len(kept) - held,
        "left out": len(pairs) - len(kept),
        **measured(trainer),
    }
    keep(trainer, out, report)
    return report


def needed() -> tuple[Any, Any, Any]:
    """TRL's config and trainer, and the data set that it takes."""
    try:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer
    except ImportError as error:
        raise ImportError(f"this recipe needs TRL: pip install 'trl>=1.16' ({error})") from error
    return DPOConfig, DPOTrainer, Dataset


def fitting(pairs: list[dict[str, Any]], tokenizer: Any, config: dict[str, Any], context: int) -> list[dict[str, Any]]:
    """The pairs of at most `longest` tokens; the others are counted in the log. A cut answer would teach to stop."""
    longest = config["longest"]
    if not 0 < longest <= context:
        raise ValueError(f"longest: {longest}: expected 1 to the {context} positions of {config['model']}.")
    tokens = [tokens_of(pair, tokenizer) for pair in pairs]
    beyond = [number for number, n in enumerate(tokens, 1) if n > longest]
    if beyond and is_first():
        named = ", ".join(map(str, beyond[:5])) + (", ..." if len(beyond) > 5 else "")
        logger.warning(
            "%d of %d pairs have more than %d tokens (the longest %d) and are left out: pair %s.",
            len(beyond), len(pairs), longest, max(tokens), named,
        )  # fmt: skip
    return [pair for pair, n in zip(pairs, tokens, strict=True) if n <= longest]


def measured(trainer: Any) -> dict[str, Any]:
    """Each step's metrics, and those of the held-out pairs before and after."""
    logs = trainer.state.log_history
    before, after = next(log for log in logs if "eval_loss" in log), trainer.evaluate()
    return {
        "steps": [{name: log[name] for name in COMPARED if name in log} for log in logs if "grad_norm" in log],
        "before": {name: before[f"eval_{name}"] for name in COMPARED if f"eval_{name}" in before},
        "after": {name: after[f"eval_{name}"] for name in COMPARED if f"eval_{name}" in after},
    }


if __name__ == "__main__":
    command(__doc__, run, "recipes.long_dpo")
