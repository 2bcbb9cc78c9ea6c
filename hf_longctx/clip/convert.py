"""Published Long-CLIP weights, in OpenAI's names or transformers', to a stock CLIP checkpoint."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..hub.save import check_target
from ..settings import is_whole
from . import geometry, openai
from .checkpoint import local_folder, save_clip
from .checks import read_json
from .files import WEIGHTS, read_state
from .stretch import MARK
from .table import KEEP, is_interpolated

logger = logging.getLogger(__name__)

LEAST_ID = 3  # of the random texts that a conversion is compared on
_HF_TABLE = "text_model.embeddings.position_embedding.weight"
_HF_TRAINED = ("text_model.embeddings.position_embedding_res", "text_model.embeddings.position_embedding_res.weight")
_LOST = (
    "rows {keep} to {last} of the table of text positions are plain interpolation: the rows that Long-CLIP trained "
    "(its positional_embedding_res) are not in it. Convert the original .pt file instead; allow_interpolated=True "
    "(--allow-interpolated) accepts it as it is."
)


def convert(
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    keep: int = KEEP,
    tokenizer: str | os.PathLike[str] | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
    allow_interpolated: bool = False,
    overwrite: bool = False,
) -> Path:
    """Save published Long-CLIP weights as a CLIP checkpoint that plain transformers reads.

    Long-CLIP has two tables of positions, and reads the first `keep` rows of one and the others of the other; they
    become one. Embeddings are compared with a forward pass that uses the weights alone before anything is saved.

    Args:
        file: Long-CLIP's .pt or .safetensors file in OpenAI's names, or the folder or Hub id of a conversion with
            transformers' names, with one table or both, or of OpenCLIP.
        out: Appears complete or not at all.
        keep: Rows read from the first table: 20 in all published models.
        tokenizer: A folder or Hub id with CLIP's tokenizer, whose vocabulary is Long-CLIP's too; by default that of a
            conversion's folder.
        activation: `quick_gelu` or `gelu`. By default that of a config beside the weights, else `quick_gelu`, that of
            OpenAI's models; for sizes that OpenCLIP alone has (H, g, bigG, ...) it must be given.
        heads: Attention heads of the text and the image tower. By default those of a config beside the weights
            (`open_clip_config.json`, or the folder's `config.json`), else of the published model of this size.
        allow_interpolated: Accept a table whose trained rows were lost as well.
        overwrite: Write into a folder that is not empty.

    Raises:
        ValueError: No whole CLIP, a lost table, or heads that are unknown or contradict a config.
    """
    check_target(out, overwrite=overwrite)
    path = Path(file).expanduser()
    single = path.is_file() or (path.suffix in WEIGHTS and not path.is_dir())  # missing: read_state says so
    if single:
        state, folder = read_state(path), path.parent
    else:
        folder = local_folder(file, "file or folder")
        state = _weights(folder)
    if not any(name.startswith("text_model.") for name in state):
        found = openai.sizes(openai.tidy(state))
        config = geometry.from_openclip_config(folder, found)
        if config is None and not single:
            config = geometry.from_transformers_config(folder, found)
        model = from_openai(
            state,
            keep=keep,
            activation=activation,
            heads=heads,
            config=config,
            allow_interpolated=allow_interpolated,
        )
        return save_clip(model, tokenizer, out, overwrite=overwrite, images=_image_settings(model))
    model = _from_transformers(state, folder, keep=keep, heads=heads, allow_interpolated=allow_interpolated)
    acts = {model.config.text_config.hidden_act, model.config.vision_config.hidden_act}
    if activation is not None and acts != {activation}:
        raise ValueError(f"activation={activation!r}: config.json says {' and '.join(sorted(acts))}. Leave it out.")
    return save_clip(model, tokenizer or folder, out, overwrite=overwrite)


def from_openai(
    state: Mapping[str, Tensor],
    *,
    keep: int = KEEP,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
    config: geometry.Configured | None = None,
    allow_interpolated: bool = False,
) -> Any:
    """A CLIPModel from a state dict in OpenAI's names, with one table of positions or Long-CLIP's two; as `convert`."""
    from transformers import CLIPModel

    weights = openai.tidy(state)
    found = openai.sizes(weights)
    chosen = geometry.heads_of(found, heads, config)
    act = geometry.activation_of(found, activation, config)
    table = _merged(weights[openai.TABLE], weights.get(openai.TRAINED_TABLE), keep, allow_interpolated)
    merged = {name: tensor for name, tensor in weights.items() if name != openai.TRAINED_TABLE} | {openai.TABLE: table}
    model = _filled(CLIPModel(found.config(act, *chosen)), openai.to_transformers(merged))
    return _checked(model, weights, keep, chosen)


def _from_transformers(
    state: Mapping[str, Tensor], folder: Path, *, keep: int, heads: tuple[int, int] | None, allow_interpolated: bool
) -> Any:
    from transformers import CLIPConfig, CLIPModel

    names = {"text_model.text_model.": "text_model.", "vision_model.vision_model.": "vision_model."}
    weights = {
        next((new + n[len(old) :] for old, new in names.items() if n.startswith(old)), n): t for n, t in state.items()
    }
    trained = next((weights.pop(name) for name in _HF_TRAINED if name in weights), None)
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith(".position_ids")}
    if _HF_TABLE not in weights:
        raise ValueError(f"no {_HF_TABLE} among the weights: not a CLIP in transformers' names. Give a Long-CLIP.")
    if not any(name.startswith("vision_model.") for name in weights):
        raise ValueError(
            "these are the weights of a text tower alone. Convert the whole model: CLIPTextModel.from_pretrained reads "
            "the text tower of the saved one."
        )
    first = weights[_HF_TABLE]
    weights[_HF_TABLE] = _merged(first, trained, keep, allow_interpolated)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            "weights in transformers' names need the config.json beside them. Give the whole folder."
        )
    given = read_json(folder / "config.json", "Give an unchanged folder.")
    known = {key: given[key] for key in ("projection_dim", "logit_scale_init_value") if key in given}
    towers = {part: {**(given.get(part) or {})} for part in ("text_config", "vision_config")}
    towers["text_config"]["max_position_embeddings"] = weights[_HF_TABLE].shape[0]
    for tower in towers.values():
        tower["projection_dim"] = given.get("projection_dim", 512)
        # `model_type: longclip` and the like name classes of their own; the result is a stock CLIP
        for key in ("model_type", "architectures"):
            tower.pop(key, None)
    model = _filled(CLIPModel(CLIPConfig(**known, **towers)), weights)
    tables = {openai.TABLE: first} if trained is None else {openai.TABLE: first, openai.TRAINED_TABLE: trained}
    original = openai.from_transformers(weights) | tables
    return _checked(model, original, keep, _configured_heads(model.config, towers, openai.sizes(original), heads))


def _configured_heads(
    config: Any, towers: dict[str, Any], sizes: openai.Sizes, given: tuple[int, int] | None
) -> geometry.Heads:
    """The heads by a conversion's config, which must be those of the published model if it leaves them out."""
    read = geometry.Heads(config.text_config.num_attention_heads, config.vision_config.num_attention_heads)
    for (part, fields), heads, published in zip(towers.items(), read, geometry.known(sizes), strict=True):
        if "num_attention_heads" not in fields and published not in (None, heads):
            raise ValueError(
                f"config.json has no num_attention_heads in {part}, for which transformers takes {heads}; the "
                f"published model of this size has {published}. Add the right number."
            )
    return geometry.heads_of(sizes, given, geometry.Configured(read, None, "config.json"))


def _merged(table: Tensor, trained: Tensor | None, keep: int, allow_interpolated: bool) -> Tensor:
    if not is_whole(keep, 0) or keep >= table.shape[0]:
        raise ValueError(
            f"keep={keep!r}: expected a whole number below the table's {table.shape[0]} rows. Long-CLIP's is {KEEP}."
        )
    if trained is not None:
        if trained.shape != table.shape:
            raise ValueError(
                f"the two tables of text positions are {list(table.shape)} and {list(trained.shape)}; expected the "
                f"same. Give Long-CLIP's own file."
            )
        table = torch.cat([table[:keep], trained[keep:]])
    if is_interpolated(table):
        message = _LOST.format(keep=keep, last=table.shape[0] - 1)
        if not allow_interpolated:
            raise ValueError(message)
        logger.warning(message)
    return table


def _filled(model: Any, weights: Mapping[str, Tensor]) -> Any:
    expected = set(model.state_dict())
    # torch's own error is a page of text
    if found := openai.differences(expected - set(weights), set(weights) - expected):
        raise ValueError(
            f"this is not a whole CLIP: it {found}. Give Long-CLIP's own .pt or an unchanged transformers folder."
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"weights and config do not belong together ({reason}). Give both from one checkpoint."
        ) from error
    return model.eval()


def _checked(model: Any, weights: Mapping[str, Tensor], keep: int, heads: geometry.Heads) -> Any:
    """The model in the weights' dtype, after the comparison with them; a stretched one is marked."""
    _compare(model, weights, keep, heads)
    config = model.config.text_config
    if config.max_position_embeddings > 77:  # CLIP's own table is not a stretched one
        setattr(config, MARK, {"keep": keep})
    # files keep some weights in half and others in full precision: nothing is lost in the widest
    kinds = [tensor.dtype for tensor in weights.values() if tensor.is_floating_point()]
    return model.to(functools.reduce(torch.promote_types, kinds))


@torch.no_grad()
def _compare(model: Any, weights: Mapping[str, Tensor], keep: int, heads: geometry.Heads) -> None:
    """The converted model's embeddings of random texts and images must be those of the weights in OpenAI's names.

    `heads` are those of the weights' own model, from wherever the converted one has its own.
    """
    text, vision = model.config.text_config, model.config.vision_config
    acts = {text.hidden_act, vision.hidden_act}
    if not acts <= set(geometry.ACTIVATIONS):
        logger.warning("no reference forward knows %s, so the conversion was not checked", " and ".join(sorted(acts)))
        return
    length = text.max_position_embeddings
    # the reference pools at the largest id, as do configs with end token 2
    end = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
    if end <= LEAST_ID:
        raise ValueError(
            f"the config's end token is {end}, and Long-CLIP pools at the largest id of a text, its end token. "
            f"Give a model with CLIP's tokenizer."
        )
    chance = torch.Generator().manual_seed(0)  # the global one is the caller's
    ids = torch.randint(LEAST_ID, end, (2, length), generator=chance)
    ids[0, -1] = ids[1, length // 2] = end
    ids[1, length // 2 + 1 :] = 0  # as OpenAI pads
    pixels = torch.randn(2, 3, vision.image_size, vision.image_size, generator=chance)
    exact = {name: tensor.float() for name, tensor in weights.items()}
    texts = openai.encode_text(exact, ids, keep, text.hidden_act, heads.text)
    images = openai.encode_image(exact, pixels, vision.hidden_act, heads.image)
    found = model.get_text_features(input_ids=ids), model.get_image_features(pixel_values=pixels)
    for kind, truth, converted in zip(("text", "image"), (texts, images), found, strict=True):
        error = (converted.pooler_output - truth).abs().max() / truth.abs().max()
        # float32 through 12 to 24 layers; a wrong name or table gives about 1
        if not error < 1e-3:
            raise RuntimeError(
                f"the converted model's {kind} embeddings differ from the file's by {error:.1e} of their size. Nothing "
                f"was saved; please report this with the name of the file."
            )


def _weights(folder: Path) -> dict[str, Tensor]:
    for pattern in ("model*.safetensors", "pytorch_model*.bin", "open_clip*.safetensors", "open_clip*.bin"):
        if files := sorted(folder.glob(pattern)):
            return {name: tensor for file in files for name, tensor in read_state(file).items()}
    raise FileNotFoundError(
        f"{folder.name!r} has neither model.safetensors nor pytorch_model.bin. Give a whole checkpoint."
    )


def _image_settings(model: Any) -> dict[str, Any]:
    """How OpenAI prepares images for this model."""
    size = model.config.vision_config.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
