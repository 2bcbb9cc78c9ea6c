"""Stretches the text positions of a CLIP-like model, or of an OpenCLIP state dict, in place."""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from ..hub.resolve import first_line
from .checks import evaluating, some
from .table import KEEP, RATIO, is_interpolated, stretch_table, stretched_length

logger = logging.getLogger(__name__)

# A key of the text config: a trained table does not show that it was stretched. transformers keeps and ignores it.
MARK = "position_stretch"
# OpenCLIP: of a plain CLIP, and of one whose text tower is a module
OPENCLIP_TABLES = ("positional_embedding", "text.positional_embedding")
NEEDS_TRAINING = (
    "{name} reads text in both directions and pools its last position, so every output changes with the length of its "
    "table, also for short texts: train the stretched model before you use it. A causal CLIP keeps its outputs."
)


def stretch_positions(model_or_path: Any, keep: int = KEEP, ratio: int = RATIO) -> Any:
    """Stretch the text positions of a model, in place, and return it: with 20 and 4, 77 tokens become 248.

    Texts of at most `keep` tokens keep their outputs. Make optimizers afterwards: the table is a new parameter. For the
    tokenizer there is `stretch_tokenizer`; `stretch_checkpoint` does both and saves.

    Args:
        model_or_path: A CLIP or SigLIP model of transformers, or its text tower; the path or Hub id of one, which is
            loaded in its own dtype; or an OpenCLIP state dict.
        keep: Rows from the first that stay as they are.
        ratio: The number of rows that each of the others becomes.

    Raises:
        ValueError: No or several tables of text positions, wrong `keep` or `ratio`, or a table that was stretched
            before, as far as it shows: that of a Long-CLIP trained elsewhere does not. Nothing has been changed.
    """
    if isinstance(model_or_path, (str, os.PathLike)):
        model_or_path = load_whole(os.fspath(model_or_path))
    if isinstance(model_or_path, MutableMapping):
        stretch_state_dict_(model_or_path, keep, ratio)
        return model_or_path
    if not isinstance(model_or_path, nn.Module):
        raise ValueError(
            f"{type(model_or_path).__name__}: expected a CLIP or SigLIP model, its path or Hub id, or an OpenCLIP "
            f"state dict."
        )
    _stretch_model(model_or_path, keep, ratio)
    return model_or_path


def text_length(model: nn.Module) -> int:
    """The rows of the model's table of text positions."""
    return int(find_text_embeddings(model)[1].position_embedding.weight.shape[0])


def load_whole(path: str) -> Any:
    """The model in the class that its config names: AutoModel would drop the projection of a text tower.

    ValueError or OSError with the reason if a folder or Hub id does not give a whole model, safely.
    """
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(path)
    except OSError as error:
        raise OSError(
            f"{path!r}: the config of a model could not be read ({first_line(error)}). Give a folder that "
            f"save_pretrained wrote, or a Hub id ('owner/name')."
        ) from error
    kind = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None) or AutoModel
    try:
        # sizes that differ come back as names: the exception would not say which
        model, found = kind.from_pretrained(
            path, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True, weights_only=True
        )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path!r}: its weights hold more than tensors, which means code that loading would run, or they are "
            f"damaged; they are refused. Save them with safetensors in a place where you trust them."
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path!r}: its weights are cut short or damaged ({first_line(error)}). Get them again."
        ) from error
    wrong = [f"{key[0]} is {list(key[1])} and not {list(key[2])}" for key in found["mismatched_keys"]]
    wrong += [f"{key} is missing" for key in sorted(found["missing_keys"])]
    if wrong:
        raise ValueError(
            f"{path!r}: weights and config do not belong together: {some(wrong)}. Give both from one checkpoint."
        )
    return model.eval()


def stretch_state_dict_(
    state: MutableMapping[str, Tensor], keep: int = KEEP, ratio: int = RATIO, mark: dict[str, int] | None = None
) -> int:
    """Stretch the table of an OpenCLIP state dict; returns the new length, its new `context_length`.

    `mark` is the note that an earlier stretching left in its config.
    """
    found = [name for name in OPENCLIP_TABLES if name in state]
    if len(found) != 1 or "positional_embedding_res" in state:
        raise ValueError(
            f"a state dict with {found or 'no table of text positions'}: expected exactly one of "
            f"{' or '.join(OPENCLIP_TABLES)}, as OpenCLIP saves it. Long-CLIP's own files are for `convert`."
        )
    table = state[found[0]]
    longer = stretch_table(table, keep, ratio)
    _refuse_stretched(table, mark)
    state[found[0]] = longer
    return int(longer.shape[0])


def _stretch_model(model: nn.Module, keep: int, ratio: int) -> None:
    name, embeddings = find_text_embeddings(model)
    table = embeddings.position_embedding.weight
    length = stretched_length(table.shape[0], keep, ratio)
    if table.device.type == "meta":
        raise ValueError("the table of text positions is offloaded. Load the model without device_map, stretch, save.")
    configs = list(text_configs(model, table.shape[0]))
    if not configs:
        raise ValueError(
            f"{type(model).__name__}: no config of it has max_position_embeddings={table.shape[0]}, the rows of its "
            f"table; its saved form would not load. Repair the config first."
        )
    _refuse_stretched(table, next((mark for config in configs if (mark := getattr(config, MARK, None))), None))
    bidirectional = _sees_what_follows(model.get_submodule(name.rpartition(".")[0]), embeddings)
    with torch.inference_mode(False), torch.no_grad():  # else it could not be trained outside of inference mode
        longer = stretch_table(table, keep, ratio)
        positions = torch.arange(length, device=table.device).expand(1, -1)

    # from here on nothing can fail
    with torch.inference_mode(False):
        embeddings.position_embedding.weight = nn.Parameter(longer, requires_grad=table.requires_grad)
    embeddings.position_embedding.num_embeddings = length
    if "position_ids" in embeddings._buffers:
        embeddings.register_buffer(
            "position_ids",
            positions,
            persistent="position_ids" not in embeddings._non_persistent_buffers_set,
        )
    for config in configs:
        config.max_position_embeddings = length
        setattr(config, MARK, {"from": table.shape[0], "keep": keep, "ratio": ratio})
    _agree_on_projection(model)
    logger.info("stretched %s of %s from %d to %d positions", name, type(model).__name__, table.shape[0], length)
    if bidirectional:
        warnings.warn(NEEDS_TRAINING.format(name=type(model).__name__), UserWarning, stacklevel=3)


def find_text_embeddings(model: nn.Module) -> tuple[str, Any]:
    """The name and module that adds learned positions to tokens, wherever this model or version keeps it."""
    parts = ("token_embedding", "position_embedding")
    found = [
        (name, module)
        for name, module in model.named_modules()
        if all(isinstance(getattr(module, part, None), nn.Embedding) for part in parts)
    ]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(found)} modules with a token_embedding and a position_embedding; "
            f"expected the one text tower of a CLIP or SigLIP model."
        )
    return found[0]


def text_configs(model: nn.Module, length: int) -> Iterator[Any]:
    """Every config with this length of text, once; parts of a model may share theirs or have copies."""
    seen: set[int] = set()
    for module in model.modules():
        config = getattr(module, "config", None)
        for one in (config, getattr(config, "text_config", None)):
            if getattr(one, "max_position_embeddings", None) == length and id(one) not in seen:
                seen.add(id(one))
                yield one


def _refuse_stretched(table: Tensor, mark: dict[str, int] | None = None) -> None:
    if mark is not None or is_interpolated(table):
        how = f" ({', '.join(f'{key}={value}' for key, value in mark.items())})" if mark else ""
        raise ValueError(
            f"the table of {table.shape[0]} text positions was stretched before{how}. Stretch the original model, with "
            f"a larger ratio or a smaller keep for more tokens."
        )


@torch.no_grad()
def _sees_what_follows(tower: nn.Module, embeddings: Any) -> bool:
    """Whether the first position's output depends on a later token. It is tried, since no flag shows it."""
    ids = torch.zeros(2, min(4, embeddings.position_embedding.weight.shape[0]), dtype=torch.long)
    ids[1, -1] = 1
    with evaluating(tower):
        first = tower(ids.to(embeddings.token_embedding.weight.device)).last_hidden_state[:, 0]
    return not torch.equal(first[0], first[1])


def _agree_on_projection(model: Any) -> None:
    """CLIPTextModelWithProjection reads `projection_dim` from the text config, which may be wrong in a whole CLIP."""
    config: Any = getattr(model, "config", None)
    for part, name in (("text_config", "text_projection"), ("vision_config", "visual_projection")):
        layer: Any = getattr(model, name, None)
        inner: Any = getattr(config, part, None)
        if isinstance(layer, nn.Linear) and hasattr(inner, "projection_dim"):
            inner.projection_dim = layer.out_features
