"""From a checkpoint to a stretched one: model, tokenizer and processor together, for plain transformers or OpenCLIP."""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from ..hub.resolve import first_line
from ..hub.save import check_target, save_with
from .checks import read_json
from .files import read_state, write_state
from .geometry import OPENCLIP_CONFIG
from .stretch import MARK, NEEDS_TRAINING, load_whole, stretch_positions, stretch_state_dict_, text_length
from .table import KEEP, RATIO
from .tokens import has_default_length, stretch_tokenizer

logger = logging.getLogger(__name__)

# Without one of them, AutoTokenizer silently makes an empty tokenizer.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "vocab.txt")
# Copied unchanged: the preparation of images stays the same, and parsing it would need torchvision.
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_OPENCLIP_WEIGHTS = [
    f"open_clip_{name}" for name in ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")
]


def stretch_checkpoint(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    keep: int = KEEP,
    ratio: int = RATIO,
    *,
    overwrite: bool = False,
) -> Path:
    """Save `model` with stretched text positions into `out`, which plain transformers (or OpenCLIP) reads.

    Args:
        model: A folder or Hub id with a CLIP or SigLIP model, or its text tower, or an OpenCLIP checkpoint.
        out: Appears complete or not at all.
        keep: Rows from the first that stay as they are.
        ratio: The number of rows that each of the others becomes.
        overwrite: Write into a folder that is not empty.
    """
    check_target(out, overwrite=overwrite)  # before a download
    folder = local_folder(model)
    if not (folder / "config.json").is_file() and (folder / OPENCLIP_CONFIG).is_file():
        return _stretch_openclip(folder, Path(out), keep, ratio, overwrite)
    loaded = stretch_positions(load_whole(str(folder)), keep, ratio)
    return save_clip(loaded, folder, out, overwrite=overwrite)


def save_clip(
    model: Any,
    tokens_from: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    images: dict[str, Any] | None = None,
) -> Path:
    """Save a model with the tokenizer and processor of a folder or Hub id, set to the model's length.

    `images` is the image processor's config, if that of the other folder belongs to another model.
    """
    source, length = None if tokens_from is None else local_folder(tokens_from), text_length(model)
    tokenizer = None if source is None else _tokenizer(source, length)
    if tokenizer is None:
        logger.warning(
            f"no tokenizer was found, so {out} has none; save one with it: stretch_tokenizer(AutoTokenizer."
            f"from_pretrained(...), {length}).save_pretrained({str(out)!r})"
        )

    def write(target: Path) -> None:
        model.save_pretrained(target)
        if tokenizer is not None:
            tokenizer.save_pretrained(target)
        if images is not None:
            (target / _PROCESSORS[0]).write_text(json.dumps(images, indent=2) + "\n", encoding="utf-8")
        for name in _PROCESSORS if images is None else ():
            if source is not None and (source / name).is_file():
                shutil.copyfile(source / name, target / name)

    return save_with(write, out, sum(tensor.nbytes for tensor in model.parameters()), overwrite=overwrite)


def local_folder(model: str | os.PathLike[str], what: str = "folder") -> Path:
    """The folder itself, or the Hub's files in its cache; `what` the caller accepts, for errors."""
    if not isinstance(model, (str, os.PathLike)):
        raise ValueError(f"{type(model).__name__}: expected a folder or a Hub id ('owner/name').")
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", OPENCLIP_CONFIG, "tokenizer_config.json")):
            raise FileNotFoundError(
                f"{str(model)!r} is a folder without a config.json or {OPENCLIP_CONFIG}. Give a folder that "
                f"save_pretrained or OpenCLIP wrote."
            )
        return folder
    name = os.fspath(model)
    if folder.exists():
        raise ValueError(f"{name!r} is a file. Give a folder or a Hub id; single files are for `convert`.")
    if name.startswith((".", "~", os.sep)) or name.count("/") != 1:
        raise FileNotFoundError(f"{name!r}: there is no such {what}. Give a {what} or a Hub id ('owner/name').")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors", "*.bin"]))
    # offline, a proxy, a wrong name: each client version has its own exceptions, and all are a reason
    except Exception as error:
        raise OSError(
            f"{name!r}: not a folder here, and the Hub did not give a model of this name ({first_line(error)})."
        ) from error


def _tokenizer(folder: Path, length: int) -> Any:
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        return None
    import transformers

    tokenizer = stretch_tokenizer(transformers.AutoTokenizer.from_pretrained(str(folder)), length)
    for name in (*_PROCESSORS, "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
        if has_default_length(getattr(transformers, settings.get("processor_class") or "", None)):
            tokenizer.init_kwargs["max_length"] = length
    return tokenizer


def _stretch_openclip(folder: Path, out: Path, keep: int, ratio: int, overwrite: bool) -> Path:
    config = read_json(folder / OPENCLIP_CONFIG)
    text = config.get("model_cfg", {}).get("text_cfg", {})
    if text.get("hf_model_name") or text.get("embed_cls"):
        stock = text.get("hf_model_name")
        whose = f"{stock} of transformers" if stock else "CoCa's, with a class token in its table"
        raise ValueError(
            f"{str(folder)!r}: its text tower is {whose}, whose positions cannot be stretched here. Give an "
            f"OpenCLIP model with a CLIP text tower."
        )
    weights = next((folder / name for name in _OPENCLIP_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{str(folder)!r} has none of {', '.join(_OPENCLIP_WEIGHTS)}.")
    state = read_state(weights)
    length = stretch_state_dict_(state, keep, ratio, config.get(MARK))
    # beside the model's own part, in which OpenCLIP takes every key for an argument
    config[MARK] = {"from": text.get("context_length", 77), "keep": keep, "ratio": ratio}
    text["context_length"] = length
    tokenizer = _tokenizer(folder, length)
    if text.get("no_causal_mask"):  # SigLIP, as OpenCLIP writes it
        warnings.warn(NEEDS_TRAINING.format(name="this OpenCLIP model"), UserWarning, stacklevel=3)

    def write(target: Path) -> None:
        for file in folder.iterdir():
            if file.suffix in (".json", ".txt", ".model"):
                shutil.copyfile(file, target / file.name)
        (target / OPENCLIP_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_state(state, target / "open_clip_model.safetensors")
        if tokenizer is not None:
            tokenizer.save_pretrained(target)

    return save_with(write, out, sum(tensor.nbytes for tensor in state.values()), overwrite=overwrite)
