"""GGUF to safetensors: transformers unpacks the weights; this restores what the format or the conversion lost.

Restored: the scaling of rotary frequencies (`gguf_rope.py`), decimal settings that were rounded to float32
(`rms_norm_eps` 9.999999747e-06 is 1e-05), the trained length as the tokenizer's `model_max_length`, end-of-turn tokens
in `generation_config.json`, and the pre-tokenizer, without which numbers are cut into other tokens than in training.
Removed: names and ids that the conversion itself leaves.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..upstream.installing import install_extra
from .save import save

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from .gguf_rope import FileRope

logger = logging.getLogger(__name__)

# from_pretrained sets torch's default dtype and device for a while; two threads in it would leave a wrong one.
_one_at_a_time = threading.RLock()

# Part of the cache folder's name: raise it when a repair changes, so that older conversions are not reused.
# 2: RoPE scaling is kept, and a file of the same name in the current folder is not taken for the one that was named.
_CONVERSION = 2

_METADATA = 1 << 24  # bytes from the start that hold all metadata, vocabularies of 256k tokens included

# llama.cpp's names (`tokenizer.ggml.pre`) for "every digit alone, then the GPT-2 pattern".
_DIGITS_THEN_GPT2 = {"smollm", "starcoder", "refact", "command-r", "codeshell"}
# Names whose pattern is GPT-2's own, which transformers uses for every unknown name as well.
_PLAIN_GPT2 = {None, "default", "gpt-2", "phi-2", "olmo", "jais", "mpt"}


def convert(gguf_file: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a safetensors checkpoint with the weights of `gguf_file`: converted on the first call, then reused.

    The weights are dequantised and stored in bfloat16; load them in float32 on a CPU. The folder appears complete or
    not at all: a crash, a full disk or a second conversion at the same time does no harm.

    Args:
        gguf_file: One whole `.gguf` file of a decoder that transformers can read.
        cache_dir: Where converted checkpoints are kept; `$HF_HOME/hf_longctx/gguf` by default.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The gguf package is not installed.
        ValueError: The file is damaged, split or of another format, or its RoPE scaling or pre-tokenizer has no
            equivalent in a transformers checkpoint; the message names it.
        OSError: The folder cannot be written, or the disk is full.
    """
    path = Path(gguf_file).expanduser()
    _check_start(path)
    folder = Path(cache_dir).expanduser() if cache_dir is not None else cache_home() / "gguf"
    target = folder / f"{path.stem}-c{_CONVERSION}-{_fingerprint(path)}"
    if target.is_dir():
        return target
    with _one_at_a_time:
        return target if target.is_dir() else _convert(path, target)


def _convert(path: Path, target: Path) -> Path:
    fields, rope = _read_header(path)
    _warn_of_older(path, target)
    logger.info("converting %s once into %s", path, target)
    model, tokenizer = _dequantise(path, rope)
    _repair_config_(model.config)
    _repair_generation_(model, fields)
    _repair_tokenizer_(tokenizer, model.config, fields)
    try:
        return save(model, tokenizer, target)
    except (OSError, ValueError):
        # Another process has converted the same file in the meantime: its result is the same.
        if target.is_dir():
            return target
        raise


def _warn_of_older(path: Path, target: Path) -> None:
    """Conversions by older versions are no longer used, and take gigabytes."""
    this = re.compile(rf"{re.escape(path.stem)}-[0-9a-f]{{16}}")  # later ones have the conversion in their names
    for old in sorted(target.parent.glob("*-*")):
        if this.fullmatch(old.name):
            logger.warning(
                "%s was converted by an older version of hf_longctx, which lost a RoPE scaling where the file has one, "
                "and could take another file of the same name. It is no longer used: delete it.",
                old,
            )


def read_gguf_config(gguf_file: str | os.PathLike[str]) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The config that `convert` saves, from the header alone, and the raw settings that transformers reads.

    Raises the errors of `convert` about a file that cannot be read or expressed.
    """
    from transformers import PreTrainedConfig

    path = Path(gguf_file).expanduser()
    _check_start(path)
    config = _config(path, _read_header(path)[1])
    _repair_config_(config)
    return config, PreTrainedConfig.get_config_dict(**_source(path))[0]


def _config(path: Path, rope: FileRope) -> PreTrainedConfig:
    from transformers import AutoConfig

    from .gguf_rope import with_file_rope

    try:
        config = AutoConfig.from_pretrained(**_source(path))
    except Exception as error:  # an architecture or a key that transformers reads wrongly fails anywhere
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{str(path)!r}: transformers cannot read a config of architecture {rope.architecture!r} with "
            f"{rope.summary()} from it ({reason}). Load the original checkpoint, not its GGUF file."
        ) from error
    try:
        restored: PreTrainedConfig = with_file_rope(config, rope)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error
    return restored


def cache_home() -> Path:
    """The folder below `$HF_HOME` in which hf_longctx keeps what it downloads and converts."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "hf_longctx"


def _check_start(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r}: there is no such file. Expected the path of a .gguf file.")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        found = f"starts with {magic!r}" if magic else "is empty"
        raise ValueError(f"{str(path)!r} {found}, a GGUF file starts with b'GGUF'. Give a file in GGUF format.")


def _read_header(path: Path) -> tuple[dict[str, Any], FileRope]:
    """The metadata of tokenizer and file, and those of RoPE; refuses a file that is cut short or split."""
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise ImportError(
            f"Reading a GGUF file needs the gguf package: {install_extra('gguf')}, or pip install gguf."
        ) from error
    from .gguf_rope import TENSORS, FileRope

    try:
        # The reader maps every tensor that the header promises, so a file cut anywhere fails here.
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(
            f"{str(path)!r} ({path.stat().st_size:,} bytes) is cut short or damaged: its header promises "
            f"more than the file holds ({error}). Download it again and compare its size with the source's."
        ) from error

    names = ["general.architecture", "split.count"]
    names += [f"tokenizer.ggml.{name}" for name in ("model", "pre", "eot_token_id")]
    fields = {name: reader.fields[name].contents() for name in names if name in reader.fields}
    if fields.get("split.count", 1) > 1:
        raise ValueError(
            f"{str(path)!r} is one of {fields['split.count']} parts; expected one whole file. "
            "Join them first: llama-gguf-split --merge."
        )
    architecture = str(fields.get("general.architecture"))
    of_rope = {
        key.removeprefix(f"{architecture}."): field.contents()
        for key, field in reader.fields.items()
        if key.startswith((f"{architecture}.rope.", f"{architecture}.attention.key_length"))
    }
    factors = {t.name: dequantize(t.data, t.tensor_type).reshape(-1) for t in reader.tensors if t.name in TENSORS}
    return fields, FileRope(architecture, of_rope, factors)


def _fingerprint(path: Path) -> str:
    """Identifies the file by its size, its beginning and samples down to its end.

    Fine-tunes of one model share much of their beginnings; a setting changed in place is there alone.
    """
    size, step = path.stat().st_size, 1 << 16
    digest = hashlib.sha256(f"{_CONVERSION}:{size}:".encode())
    with path.open("rb") as file:
        digest.update(file.read(_METADATA))
        for sample in range(65):
            file.seek(max(size - step, 0) * sample // 64)
            digest.update(file.read(step))
    return digest.hexdigest()[:16]


def _source(path: Path) -> dict[str, Any]:
    """The arguments with which `from_pretrained` reads this file and no other.

    An absolute path: a bare name is looked for in the current folder first, whatever folder is given beside it. Not
    resolved: a file in the Hub's cache is a link, and only the link has the name.
    """
    absolute = path.absolute()
    return {"pretrained_model_name_or_path": absolute.parent, "gguf_file": str(absolute)}


def _dequantise(path: Path, rope: FileRope) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = _source(path)
    # Without dequantize=True the config keeps a quantization_config that cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        **source, config=_config(path, rope), dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    return model, AutoTokenizer.from_pretrained(**source)


def _repair_config_(config: PreTrainedConfig) -> None:
    for leftover in ("_model_name_or_path", "unk_token_id", "quantization_config"):
        config.__dict__.pop(leftover, None)
    for key, value in config.__dict__.items():
        config.__dict__[key] = _decimal(value)


def _decimal(value: Any) -> Any:
    """The shortest decimal that gives this float32, in lists and dicts too; other values are left alone."""
    import numpy as np

    if isinstance(value, dict):
        return {key: _decimal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_decimal(inner) for inner in value]
    if not isinstance(value, float) or float(np.float32(value)) != value:
        return value
    return float(str(np.float32(value)))


def _repair_generation_(model: PreTrainedModel, fields: dict[str, Any]) -> None:
    from transformers import GenerationConfig

    config = model.config
    eos, end_of_turn = config.eos_token_id, fields.get("tokenizer.ggml.eot_token_id")
    if end_of_turn is not None and end_of_turn != eos:
        eos = [end_of_turn] if eos is None else [eos, end_of_turn]
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=eos, pad_token_id=config.pad_token_id
    )


def _repair_tokenizer_(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, fields: dict[str, Any]) -> None:
    from tokenizers import pre_tokenizers

    tokenizer.model_max_length = config.get_text_config().max_position_embeddings
    for leftover in ("is_local", "local_files_only", "name_or_path"):
        tokenizer.init_kwargs.pop(leftover, None)

    if fields.get("tokenizer.ggml.model") != "gpt2":
        return
    pattern = fields.get("tokenizer.ggml.pre")
    backend = tokenizer.backend_tokenizer
    if pattern in _DIGITS_THEN_GPT2:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel) and pattern not in _PLAIN_GPT2:
        raise ValueError(
            f"tokenizer.ggml.pre={pattern!r}: neither transformers nor hf_longctx knows how this vocabulary cuts "
            "text before merging, and a guess would change the tokens. Load the original checkpoint, not its GGUF file."
        )
