"""A call by id: what the `generate.py` of a procedure's repository hands on to hf_longctx."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import registry

if TYPE_CHECKING:
    from ..generation.procedure import Procedure

# arguments that say where generate.py comes from; transformers hands them on with the others
OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "repo_type", "revision", "token")


def generate_with(
    settings: Mapping[str, Any], model: Any, inputs: Any, given: Mapping[str, Any] | None, arguments: Mapping[str, Any]
) -> Any:
    """What the `generate.py` of such a repository calls.

    Args:
        settings: The name of the procedure and the settings that were pushed.
        model: As transformers hands it on, as are `inputs` and `arguments`.
        inputs: The first argument of `model.generate`.
        given: Settings of the call, which come first; then the model's own, in the place of those pushed.
        arguments: All other arguments of `model.generate`.

    Raises:
        ValueError: A setting is unknown or has a value that it cannot have.
    """
    from transformers import GenerationMixin

    pushed: Any = registry.from_spec(dict(settings))
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(
            f"{pushed.name}={given!r:.60}: expected its settings, such as {pushed.name}={_example(pushed)}, or nothing."
        )
    configs = (arguments.get("generation_config"), model.generation_config)
    stored = (pushed.stored_in(config) for config in configs if config is not None)
    own = next((one for one in stored if one is not None), pushed)
    procedure = type(pushed).from_fields({**dataclasses.asdict(own), **(given or {})})
    rest = {name: value for name, value in arguments.items() if name not in OF_THE_HUB}
    return GenerationMixin.generate(model, inputs, custom_generate=procedure, **rest)


def _example(procedure: Procedure) -> str:
    return str(dict(list(dataclasses.asdict(procedure).items())[:1]))
