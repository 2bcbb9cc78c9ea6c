"""The recipe's settings: read, merged with variants, and checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from hf_longctx.training.memory import TrainingMemory
from recipes.config import check_alike, check_keys, check_section, read_variant, read_yaml
from recipes.config import check_training as check_fields
from recipes.resuming import fingerprints

HERE = Path(__file__).parent
DEFAULT = HERE / "config.yaml"
# settings whose fields belong together: a variant gives all of them
WHOLE = ("positions", "mix", "pose", "distil", "rehearsal", "scaled")
OF_DOCUMENTS = ("long", "short", "retrieval")
KINDS = (*OF_DOCUMENTS, "rehearsal")
# fields of `rehearsal`, the first of which is a number of tokens
OWN = {"documents": ("start",), "chats": ("asked", "greedy")}
BEGINS = {"documents": "each text has of a document", "chats": "a user's turn has at most"}
TOWARDS = ("distribution", "tokens")  # of what is rehearsed: the stock model's, or those that it wrote


def read_config(path: Path, variant: str | None = None) -> dict[str, Any]:
    """The settings of a file, with what one of its variants changes, or several that are joined by +."""
    return checked(left_out(read_variant(path, variant, WHOLE)))


def left_out(config: dict[str, Any]) -> dict[str, Any]:
    """The settings with the kinds of windows that `without` names left out: the other kinds get their shares."""
    without = config.get("without", [])
    if not (isinstance(without, list) and set(without) <= set(KINDS)):
        raise ValueError(f"without: {without}: expected a list of kinds of windows, of {', '.join(KINDS)}.")
    if not without:
        return config
    mix = {kind: share for kind, share in config["mix"].items() if kind not in without}
    rest = sum(mix.values())
    if not rest:
        raise ValueError(f"without: {without}: the mix, {config['mix']}, has nothing else. Leave one of them in.")
    found = config | {"mix": {kind: share / rest for kind, share in mix.items()}}
    if config["pose"] is not None:
        kinds = [kind for kind in config["pose"]["kinds"] if kind not in without]
        found["pose"] = config["pose"] | {"kinds": kinds} if kinds else None
    if "rehearsal" in without:
        found["rehearsal"] = None
    return found


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """The settings as they are; ValueError for what cannot work."""
    known = {name: value for name, value in read_yaml(DEFAULT).items() if name != "variants"}
    check_keys(config, known)
    check_alike(config, known)
    check_section(config["evaluation"], known["evaluation"], "evaluation: ")
    check_fields(config["memory"], TrainingMemory, "memory")
    check_fields(config["training"], TrainingArguments)
    mix = config["mix"]
    if set(mix) - set(KINDS) or any(share < 0 for share in mix.values()) or abs(sum(mix.values()) - 1) > 1e-6:
        raise ValueError(f"mix: {mix}: expected shares of {', '.join(KINDS)} that add up to 1.")
    check_rehearsal(config)
    batch, step = config["batch_tokens"], config["tokens_per_step"]
    longest = max(length for _, length in shares_of(config))
    if step < longest or batch < longest:
        raise ValueError(
            f"tokens_per_step: {step}, batch_tokens: {batch}: the longest window has {longest} tokens. Make both at "
            f"least as large, or the windows (length, retrieval) shorter."
        )
    uneven = sorted({length for _, length in shares_of(config) if batch % length})
    if uneven or step % batch:
        raise ValueError(
            f"batch_tokens: {batch}, tokens_per_step: {step}: expected a multiple of every window ({uneven} are not "
            f"divisors), and a step of whole batches, so that the shares of the mix are those of the tokens."
        )
    if config["short_first"] and not mix.get("short"):
        raise ValueError(f"short_first: {config['short_first']}: the mix has no short windows. Give them a share.")
    if not 0 <= config["averaged"] < 1 or (config["averaged"] and config["lora"]):
        raise ValueError(
            f"averaged: {config['averaged']}, lora: {config['lora']}: expected a share from 0 to below 1 of the stock "
            f"weights, and 0 with adapters, whose size does the same."
        )
    check_training(config)
    if config["tokens"] < step:
        raise ValueError(f"tokens: {config['tokens']}: expected at least the {step} of one step.")
    return config


def check_training(config: dict[str, Any]) -> None:
    """ValueError for what is not to be trained so: `retrieval`, `train`, `pose`, `distil`."""
    retrieval, train, pose, distil = (config[key] for key in ("retrieval", "train", "pose", "distil"))
    facts = {"lengths", "facts", "weight", "near", "varied", "apart", "first"}
    if set(retrieval) - facts or not {"lengths", "facts", "weight"} <= set(retrieval):
        raise ValueError(
            f"retrieval: {retrieval}: expected lengths, facts and weight; near, varied, apart and first go too."
        )
    for field in ("near", "apart", "first"):
        if not 0 <= retrieval.get(field, 0) <= 1:
            raise ValueError(f"retrieval: {field}: {retrieval[field]}: expected a share from 0 to 1.")
    if train is not None and not (isinstance(train, list) and train and all(isinstance(end, str) for end in train)):
        raise ValueError(f"train: {train}: expected ends of modules' names, such as [q_proj, k_proj], or null for all.")
    if pose is not None:
        # what is rehearsed, the stock model reads as it stands
        if (
            set(pose) - {"span"} != {"kinds", "chunks"}
            or not set(pose["kinds"]) <= set(OF_DOCUMENTS)
            or pose["chunks"] < 2
        ):
            some = ", ".join(OF_DOCUMENTS)
            raise ValueError(f"pose: {pose}: expected kinds, some of {some}, and chunks, at least 2; span goes too.")
        if pose.get("span", config["length"]) < config["length"]:
            raise ValueError(
                f"pose: span: {pose['span']}: expected at least the length, {config['length']}, or nothing."
            )
        if not any(kind in pose["kinds"] and length < config["length"] for kind, length in shares_of(config)):
            raise ValueError(
                f"pose: kinds: {pose['kinds']}: the mix has no window of these that is shorter than length, "
                f"{config['length']}. Give shorter ones (short, retrieval: lengths)."
            )
    if distil is not None:
        if set(distil) != {"weight", "length"} or distil["weight"] <= 0:
            raise ValueError(f"distil: {distil}: expected a weight above 0, and the length of the longest window.")
        if not any(kind == "short" and length <= distil["length"] for kind, length in shares_of(config)):
            raise ValueError(
                f"distil: length: {distil['length']}: the mix has no short window of at most so many tokens. Give "
                f"some a share (mix), or shorter ones (short)."
            )
    for name in taught(config):
        if not config["memory"].get("chunked_loss", True):
            raise ValueError(f"{name}: the divergence is computed in chunks. Leave out memory: chunked_loss: false.")


def check_rehearsal(config: dict[str, Any]) -> None:
    """ValueError for `rehearsal` without a share of the mix, or the other way round, and for what cannot be written."""
    settings, share = config["rehearsal"], config["mix"].get("rehearsal", 0)
    if settings is None:
        if share:
            raise ValueError(f"mix: rehearsal: {share}: of which texts? Set rehearsal: tokens, length, start, weight.")
        return
    if not share:
        raise ValueError(f"rehearsal: {settings}: the mix has none. Give it a share (mix: rehearsal), or set null.")
    of = settings.get("of", "documents")
    if of not in OWN:
        raise ValueError(f"rehearsal: of: {of}: expected {' or '.join(OWN)}.")
    begins = OWN[of][0]
    fields = {"tokens", "length", "weight", *OWN[of]}
    if (
        set(settings) - {"of", "towards"} != fields
        or settings["weight"] <= 0
        or not 0 < settings[begins] < settings["length"]
    ):
        raise ValueError(
            f"rehearsal: {settings}: of {of}, expected tokens, the length of a window, a weight above 0, and "
            f"{' and '.join(OWN[of])}; {begins}, the tokens that {BEGINS[of]}, is at least 1 and less than the length."
        )
    if settings.get("towards", TOWARDS[0]) not in TOWARDS:
        raise ValueError(f"rehearsal: towards: {settings['towards']}: expected {' or '.join(TOWARDS)}.")
    if not isinstance(settings.get("greedy", True), bool):
        raise ValueError(f"rehearsal: greedy: {settings['greedy']}: expected true or false.")
    if settings["tokens"] < settings["length"]:
        raise ValueError(f"rehearsal: tokens: {settings['tokens']}: expected at least a window, {settings['length']}.")


def taught(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is trained towards the stock model's distribution, of distil and rehearsal."""
    parts = {name: config[name] for name in ("distil", "rehearsal") if config[name] is not None}
    return {name: part for name, part in parts.items() if part.get("towards", TOWARDS[0]) == TOWARDS[0]}


def shares_of(config: dict[str, Any]) -> dict[tuple[str, int], float]:
    """The share of the tokens of each kind of window and length. Lengths of a kind have equal shares."""
    lengths = {"long": [config["length"]], "short": config["short"], "retrieval": config["retrieval"]["lengths"]}
    lengths |= {"rehearsal": [config["rehearsal"]["length"]]} if config["rehearsal"] else {}
    return {
        (kind, length): share / len(lengths[kind])
        for kind, share in config["mix"].items()
        if share
        for length in lengths[kind]
    }


def differing(config: dict[str, Any], data: str) -> dict[str, str]:
    """A short hash of every setting that decides the weights, and of the data; a resumed run must have the same."""
    free = {"out", "evaluation", "documents", "save_dtype", "averaged"}
    return fingerprints({key: value for key, value in config.items() if key not in free} | {"data": data})
