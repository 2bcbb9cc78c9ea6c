"""The recipe's settings: read, merged with a variant, and checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.config import check_alike, check_section, read_variant, read_yaml

HERE = Path(__file__).parent
DEFAULT = HERE / "config.yaml"
GENERATION = ("graphs", "static", "continuous", "plain")
CUTTING = ("graphs", "continuous")  # of these, those whose answers are ours before TRL has them
REWARDS = ("verifier", "length", "ended_length", "repetition", "unended")
REJECTED = ("random", "loops")
OPEN = ("training", "rewards")  # sections with any names
WHOLE = ("rewards",)  # a variant gives all of them
# null where a config is from before there were these
LATER = {"dpo": ("loop_tokens",), "grpo": ("loop_tokens",), "score": ("shortest",)}


def read_config(path: Path, variant: str | None = None, **given: Any) -> dict[str, Any]:
    """The settings of a file, with what one of its variants changes, and those `given` that are not None.

    Several variants are joined by +.

    Raises:
        ValueError: There is no such variant, or the settings cannot work.
    """
    config = read_variant(path, variant, WHOLE)
    return checked(config | {key: value for key, value in given.items() if value is not None})


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """The settings, with null for later ones that are left out; ValueError for what cannot work."""
    known = read_yaml(DEFAULT)
    del known["variants"]
    for stage, later in LATER.items():
        if isinstance(config.get(stage), Mapping):
            config = config | {stage: dict.fromkeys(later) | config[stage]}
    _check_sections(config, known, "")
    check_alike(config, known)
    tasks, grpo, sft = config["tasks"], config["grpo"], config["sft"]
    if tasks["tokens"][0] > tasks["tokens"][1]:
        raise ValueError(f"tasks: tokens: {tasks['tokens']}: expected the shorter and the longer length of a range.")
    if grpo["generation"] not in GENERATION:
        raise ValueError(f"grpo: generation: {grpo['generation']}: expected one of {', '.join(GENERATION)}.")
    if not grpo["rewards"] or set(grpo["rewards"]) - set(REWARDS):
        raise ValueError(f"grpo: rewards: {grpo['rewards']}: expected weights of {', '.join(REWARDS)}.")
    if config["dpo"]["rejected"] not in REJECTED:
        raise ValueError(f"dpo: rejected: {config['dpo']['rejected']}: expected one of {', '.join(REJECTED)}.")
    for stage in ("dpo", "grpo"):
        kept = config[stage]["loop_tokens"]
        if kept is not None and (type(kept) is not int or kept < 1):
            raise ValueError(f"{stage}: loop_tokens: {kept!r}: expected a number of tokens, at least 1, or null.")
    shortest, longest = config["score"]["shortest"], config["score"]["longest"]
    if shortest is not None and not (type(shortest) is int and 0 <= shortest <= longest):
        raise ValueError(
            f"score: shortest: {shortest!r}: expected words, at most those of longest, {longest}, or null."
        )
    if grpo["loop_tokens"] is not None:
        _check_cutting(grpo)
    answers = grpo["prompts_per_step"] * grpo["training"]["num_generations"]
    for name, step, forward in (
        ("sft: packs_per_step", sft["packs_per_step"], sft["packs"]),
        ("dpo: pairs_per_step", config["dpo"]["pairs_per_step"], config["dpo"]["pairs"]),
        ("grpo: the answers of a step", answers, grpo["answers"]),
    ):
        if step % forward:
            raise ValueError(f"{name}: {step}: expected a multiple of the {forward} of a forward.")
    start, full = sft["curriculum"]["start"], sft["curriculum"]["full"]
    if not (0 < start <= 1 and 0 <= full <= 1):
        raise ValueError(f"sft: curriculum: start {start}, full {full}: expected parts, above 0 and up to 1.")
    if sum(config["chain"].values()) >= 1:
        raise ValueError(f"chain: {config['chain']}: expected parts of the time that leave some for the scores.")
    return config


def telling(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without the later ones that are null: a run that began before there were these can be resumed."""
    return dict(config) | {
        stage: {name: one for name, one in config[stage].items() if one is not None or name not in later}
        for stage, later in LATER.items()
    }


def _check_cutting(grpo: Mapping[str, Any]) -> None:
    """ValueError where answers cannot be cut, where nothing is learnt from them, or where to be cut is paid."""
    given = f"grpo: loop_tokens: {grpo['loop_tokens']}: expected"
    if grpo["generation"] not in CUTTING:
        raise ValueError(
            f"{given} null with generation: {grpo['generation']}, whose answers are TRL's own; they can be cut with "
            f"{', '.join(CUTTING)}."
        )
    if grpo["training"].get("mask_truncated_completions"):
        raise ValueError(
            f"{given} null with training: mask_truncated_completions: true, by which an answer that did not end is in "
            f"no loss, cut or whole. Set that to false, as the variant grpo_cut does."
        )
    if grpo["rewards"].get("length"):
        raise ValueError(
            f"{given} rewards without length, which pays in full for an answer that is cut where it has the words that "
            f"were asked for. Take ended_length, as the variant grpo_cut does."
        )


def _check_sections(config: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """ValueError for a setting that is not known or not there, in a section too."""
    check_section(config, known, where)
    for name, one in known.items():
        if isinstance(one, Mapping) and name not in OPEN:
            if not isinstance(config[name], Mapping):
                raise ValueError(f"{where}{name}: {config[name]}: expected {', '.join(one)}.")
            _check_sections(config[name], one, f"{where}{name}: ")
