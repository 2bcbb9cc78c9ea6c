"""What must not be published, or what nobody could load: said before anything is sent."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from ..storage.secrets import TOKEN
from .damaged import json_object
from .outgoing import GENERATE, LFS_SIZE, MODEL, Files, files_of

# https://huggingface.co/docs/hub/storage-limits: "500GB is the hard limit for a single file size"
FILE_LIMIT = 500 * 10**9
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_SECRET_NAMES = (
    *(
        ".env",
        ".env.*",
        "token",
        "token.txt",
        "stored_tokens",
        "*.pem",
        "*.key",
        "*.p12",
        "*.pfx",
        "id_rsa*",
        "id_dsa*",
    ),
    *("id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".pypirc", ".git-credentials", "credentials", "credentials.json"),
)
_TOKEN = re.compile(TOKEN.pattern.encode())


def refuse_unfit(folder: str | os.PathLike[str]) -> None:
    """Look at every file before anything is sent.

    Raises:
        ValueError: Something must not be published, or nobody could load it. The message names the file.
    """
    files = files_of(folder)
    for check in CHECKS:
        check(files)


def refuse_pickles(files: Files) -> None:
    """Loading a pickle runs the code in it."""
    found = [path for path in files if path.lower().endswith(_PICKLES)]
    if not found:
        return
    todo = "Publish safetensors: load the model and save it again, into another folder."
    if any(path.endswith(".safetensors") for path in files):  # they are of a training run, or the same weights again
        todo = "The model is in safetensors: remove the pickles from the folder."
    more = f" (and {len(found) - 1} more: {', '.join(found[1:4])})" if len(found) > 1 else ""
    raise ValueError(f"{found[0]} is a pickle, which runs code when it is loaded{more}. {todo}")


def refuse_without_model(files: Files) -> None:
    """A model, an adapter, or a repository of a procedure (`custom_generate/generate.py`)."""
    if GENERATE in files and "config.json" not in files:
        return
    if not files.keys() & set(MODEL):
        raise ValueError(
            "the folder has neither config.json nor adapter_config.json, so it holds no model. Give the folder that "
            "save_pretrained or hf-longctx save has written."
        )
    if not any(path.endswith(".safetensors") for path in files if "/" not in path):
        raise ValueError(
            "the folder has a config and no weights (*.safetensors beside it). Save the model again, whole."
        )


def refuse_oversized(files: Files) -> None:
    """The Hub would refuse it after it was sent."""
    for path, file in files.items():
        if (size := file.stat().st_size) > FILE_LIMIT:
            raise ValueError(
                f"{path} has {size / 10**9:,.0f} GB, and the Hub takes {FILE_LIMIT // 10**9} GB per file. Save the "
                f"model again in parts: save_pretrained(..., max_shard_size='50GB')."
            )


def refuse_local_base(files: Files) -> None:
    """An adapter whose base only this computer has is useless to others."""
    if "adapter_config.json" not in files:
        return
    base = json_object("adapter_config.json", files["adapter_config.json"]).get("base_model_name_or_path")
    todo = "Write the Hub id of the base model there, such as 'owner/model'."
    if not isinstance(base, str) or not base:
        raise ValueError(f"adapter_config.json: base_model_name_or_path is {base!r}, expected a Hub id. {todo}")
    if Path(base).expanduser().exists():
        raise ValueError(f"adapter_config.json: base_model_name_or_path is {base!r}, a folder on this computer. {todo}")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(base)
    except HFValidationError:
        raise ValueError(
            f"adapter_config.json: base_model_name_or_path is {base!r}, which is no Hub id. {todo}"
        ) from None


def refuse_secrets(files: Files) -> None:
    """Keys and tokens, by the name of the file or by a token in it."""
    for path, file in files.items():
        name = path.rsplit("/", 1)[-1].lower()
        if any(fnmatch(name, pattern) for pattern in _SECRET_NAMES):
            raise ValueError(f"{path} looks like a secret by its name. Remove it from the folder, or rename it.")
        is_text = not name.endswith(".safetensors") and file.stat().st_size <= LFS_SIZE
        if is_text and _TOKEN.search(file.read_bytes()):
            raise ValueError(f"{path} contains what looks like a Hugging Face token (hf_...). Remove it from the file.")


Check = Callable[[Files], None]
# in this order, so that the first message is the one that helps
CHECKS: tuple[Check, ...] = (
    refuse_pickles,
    refuse_without_model,
    refuse_oversized,
    refuse_local_base,
    refuse_secrets,
)
