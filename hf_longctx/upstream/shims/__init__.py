"""Run-time cures of upstream defects, a file each, whose functions get the stock one first, and the table of them."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """Something of a package that a function is called in the place of."""

    module: str
    owner: str  # a class or a dictionary of the module; "" for the module
    name: str
    function: str  # module.function of shims/


MASKS, ROPE, MODELS = "transformers.masking_utils", "transformers.modeling_rope_utils", "transformers.modeling_utils"
GENERATION, MPT = "transformers.generation.utils", "transformers.models.mpt.modeling_mpt"
SHIMS: dict[str, tuple[Place, ...]] = {
    "0002": (Place(MASKS, "", "_preprocess_mask_arguments", "packed.separated"),),
    "0003": (Place(MASKS, "", "_preprocess_mask_arguments", "packed.separated"),),
    "0005": (Place(ROPE, "ROPE_INIT_FUNCTIONS", "yarn", "yarn.per_layer_type"),),
    "0008": (
        Place("transformers.monkey_patching", "", "apply_patches", "restored.restored"),
        Place(MODELS, "", "apply_patches", "restored.restored"),
    ),
    "0010": (Place(MODELS, "PreTrainedModel", "get_compiled_call", "compiled.of_its_own"),),
    "0011": (Place(MPT, "MptAttention", "forward", "alibi.as_long_as_the_text"),),
    "0016": (Place(MODELS, "PreTrainedModel", "from_pretrained", "loading.one_at_a_time"),),
    "0017": (Place(GENERATION, "GenerationMixin", "_assisted_decoding", "assisted.from_an_empty_cache"),),
    "0042": tuple(
        Place("peft.peft_model", owner, "prepare_inputs_for_generation", "virtual_tokens.with_its_cache")
        for owner in ("PeftModelForCausalLM", "PeftModelForSeq2SeqLM")
    ),
}
