"""GGUF to safetensors: transformers unpacks the weights; what the format or the conversion lost is put back here.

Put back: the scaling of rotary frequencies (`gguf_rope.py`), decimal settings that went through float32 (`rms_norm_eps`
9.999999747e-06 is 1e-05), the trained length as the tokenizer's `model_max_length`, end-of-turn tokens in
`generation_config.json`, and the pre-tokenizer, without which numbers are cut into other tokens than in training. Taken
out: names and ids that only the conversion left behind.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..upstream.installing import install_extra
from .save import save

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from .gguf_rope import FileRope

logger = logging.getLogger(__name__)

# from_pretrained sets torch's default dtype and device for a while; two threads in it would leave a wrong one behind.
_one_at_a_time = threading.RLock()

# Part of the cache folder's name: raise it when a repair changes, so that older conversions are not reused.
# 2: RoPE scaling is kept, and a file of the same name in the current folder is not taken for the one that was named.
_CONVERSION = 2

_HEAD = 1 << 24  # bytes in which all metadata lies, vocabularies of 256k tokens included

# llama.cpp's names (`tokenizer.ggml.pre`) for "every digit alone, then the GPT-2 pattern".
_DIGITS_THEN_GPT2 = {"smollm", "starcoder", "refact", "command-r", "codeshell"}
# Names whose pattern is GPT-2's own, which is what transformers falls back to for every name it does not know.
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
        ValueError: The file is damaged, split or of another format, or it says something of its RoPE scaling or its
            pre-tokenizer that a checkpoint of transformers cannot say; the message names it.
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
    header = _read_header(path)
    _tell_of_older(path, target)
    logger.info("converting %s once into %s", path, target)
    model, tokenizer = _dequantise(path, header)
    _repair_config_(model.config)
    _repair_generation_(model, header.fields)
    _repair_tokenizer_(tokenizer, model.config, header.fields)
    try:
        return save(model, tokenizer, target)
    except (OSError, ValueError):
        # Another process's conversion of the same file came first: its result is as good as ours.
        if target.is_dir():
            return target
        raise


def _tell_of_older(path: Path, target: Path) -> None:
    """Conversions by older versions are not used any more, and take gigabytes."""
    this = re.compile(rf"{re.escape(path.stem)}-[0-9a-f]{{16}}")  # later ones have the conversion in their names
    for old in sorted(target.parent.glob("*-*")):
        if this.fullmatch(old.name):
            logger.warning(
                "%s was converted by an older version of hf_longctx, which lost a RoPE scaling where the file has one, "
                "and could take another file of the same name. It is not used any more: delete it.",
                old,
            )


def read_gguf_config(gguf_file: str | os.PathLike[str]) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The config that `convert` saves, from the header alone, and what transformers read before any defaults.

    Raises what `convert` raises of a file that cannot be read or expressed.
    """
    path = Path(gguf_file).expanduser()
    _check_start(path)
    header = _read_header(path)
    from transformers import PreTrainedConfig

    config = _config(path, header)
    _repair_config_(config)
    return config, PreTrainedConfig.get_config_dict(**_source(path))[0]


def _config(path: Path, header: _Header) -> PreTrainedConfig:
    from transformers import AutoConfig

    from .gguf_rope import as_the_file_says

    try:
        config = AutoConfig.from_pretrained(**_source(path))
    except Exception as error:  # an architecture or a key that transformers reads wrongly fails anywhere
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{str(path)!r}: transformers cannot read a config of architecture {header.rope.architecture!r} with "
            f"{header.rope.told()} from it ({reason}). Load the original checkpoint, not its GGUF file."
        ) from error
    try:
        made: PreTrainedConfig = as_the_file_says(config, header.rope)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error
    return made


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


@dataclass(frozen=True)
class _Header:
    """`fields` are those of the tokenizer and the whole file, `rope` what is said of rotary frequencies."""

    fields: dict[str, Any]
    rope: FileRope


def _read_header(path: Path) -> _Header:
    """The metadata we need; refuses a file that is cut short or split."""
    try:
        from gguf import GGUFReader
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

    names = (
        "general.architecture",
        "split.count",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.eot_token_id",
    )
    fields = {name: reader.fields[name].contents() for name in names if name in reader.fields}
    if fields.get("split.count", 1) > 1:
        raise ValueError(
            f"{str(path)!r} is one of {fields['split.count']} parts; expected one whole file. "
            "Join them first: llama-gguf-split --merge."
        )
    start = f"{fields.get('general.architecture')}."
    said = {
        key.removeprefix(start): field.contents()
        for key, field in reader.fields.items()
        if key.startswith((f"{start}rope.", f"{start}attention.key_length"))
    }
    tensors = {tensor.name: _factors(tensor) for tensor in reader.tensors if tensor.name in TENSORS}
    return _Header(fields, FileRope(str(fields.get("general.architecture")), said, tensors))


def _factors(tensor: Any) -> Any:
    from gguf import dequantize

    return dequantize(tensor.data, tensor.tensor_type).reshape(-1)


def _fingerprint(path: Path) -> str:
    """Identifies the file by its size, its head and samples down to its tail.

    Fine-tunes of one model share much of their heads; a setting changed in place is in the head alone.
    """
    size, step = path.stat().st_size, 1 << 16
    digest = hashlib.sha256(f"{_CONVERSION}:{size}:".encode())
    with path.open("rb") as file:
        digest.update(file.read(_HEAD))
        for sample in range(65):
            file.seek(max(size - step, 0) * sample // 64)
            digest.update(file.read(step))
    return digest.hexdigest()[:16]


def _source(path: Path) -> dict[str, Any]:
    """What `from_pretrained` takes to read this file and no other.

    An absolute path: a bare name is looked for in the current folder first, whatever folder is given beside it. Not
    resolved: a file in the Hub's cache is a link, and only the link has the name.
    """
    absolute = path.absolute()
    return {"pretrained_model_name_or_path": absolute.parent, "gguf_file": str(absolute)}


def _dequantise(path: Path, header: _Header) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = _source(path)
    # Without dequantize=True the config keeps a quantization_config that cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        **source,
        config=_config(path, header),
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    return model, AutoTokenizer.from_pretrained(**source)


def _repair_config_(config: PreTrainedConfig) -> None:
    for leftover in ("_model_name_or_path", "unk_token_id", "quantization_config"):
        config.__dict__.pop(leftover, None)
    for key, value in config.__dict__.items():
        config.__dict__[key] = _decimal(value)


def _decimal(value: Any) -> Any:
    """The shortest decimal that gives this float32, in lists and dicts too; what is no float32 is left alone."""
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
