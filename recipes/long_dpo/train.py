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

from hf_longctx.hub import load
from hf_longctx.rope.parameters import readable_length
from hf_longctx.training.processes import is_first
from recipes.by_trl import TRL
from recipes.cards import SHARED, one_card
from recipes.config import check_keys, check_types
from recipes.long_dpo.pairs import IDS, read_pairs, tokens_of
from recipes.long_dpo.trainer import dpo_trainer, needed
from recipes.resuming import check_fresh
from recipes.shared_batches import arguments, command, keep, keep_model

TYPES = {"model": str, "pairs": str, "longest": int, "held_out": int, "kind": str, "out": str, "training": dict}
COMPARED = ("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")
logger = logging.getLogger("hf_longctx")


def run(config: dict[str, Any], *, resume: bool = False) -> dict[str, Any]:
    """The recipe: what `report.json` in the folder `out` has too. Every process calls it."""
    check_keys(config, {*TYPES, "degree"})
    check_types(config, TYPES)
    out = Path(config["out"])
    check_fresh(out, resume)
    pairs = read_pairs(config["pairs"])
    made = needed().config
    args = one_card(made(**arguments(made, config, out / "run", max_length=None)), SHARED)
    set_seed(args.seed)
    # Trainer moves them
    model, tokenizer = load(config["model"], dtype=torch.float32, device="cpu")
    reference, _ = load(config["model"], dtype=torch.float32, device="cpu")
    kept = fitting(pairs, tokenizer, config, readable_length(model.config.get_text_config(decoder=True)))
    held = config["held_out"]
    if not 0 < held < len(kept):
        raise ValueError(f"held_out: {held} of {len(kept)} pairs; expected at least 1, and some left to train on.")

    trainer = dpo_trainer(model, reference, tokenizer, kept[:-held], args, held=kept[-held:])
    trainer.train(resume_from_checkpoint=resume)
    keep_model(trainer, out)
    report = {
        "processes": args.world_size,
        "degree": trainer.get_cp_size(),
        "pairs": len(kept) - held,
        "left out": len(pairs) - len(kept),
        **measured(trainer),
    }
    keep(trainer, out, report)
    return report


def fitting(
    pairs: list[dict[str, Any]], tokenizer: Any, config: dict[str, Any], context: int | None
) -> list[dict[str, Any]]:
    """The pairs of at most `longest` tokens; the others are counted in the log. A cut answer would teach to stop.

    `context` is how many tokens the model reads, with what its rope is scaled by; None: it does not say.

    Raises:
        ValueError: `longest` is beyond the model's positions, or a pair has a token that the model does not have.
    """
    longest = config["longest"]
    if not 0 < longest <= (context or longest):
        most = f"to the {context} positions of {config['model']}" if context else "token, or more"
        raise ValueError(f"longest: {longest}: expected 1 {most}.")
    for number, pair in enumerate(pairs, 1):
        unknown = [one for name in IDS for one in pair.get(name, ()) if one >= len(tokenizer)]
        if unknown:
            raise ValueError(
                f"pairs: pair {number} has token {unknown[0]}, and {config['model']} has {len(tokenizer)} tokens. Give "
                f"the pairs of this model, or texts."
            )
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


packages = (TRL,)

if __name__ == "__main__":
    command(__doc__, run, "recipes.long_dpo")
