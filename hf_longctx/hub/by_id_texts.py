"""What stands in the files of a procedure's repository."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from typing import Any

from huggingface_hub.utils import validate_repo_id

from ..generation.procedure import Procedure
from ..upstream.installing import INSTALL
from ..upstream.versions import TESTED

GENERATE = '''"""{title} of hf_longctx: `model.generate(..., custom_generate="{repo_id}", trust_remote_code=True)`."""

try:  # without it, transformers would name a package that no registry has
    from hf_longctx.hub import generate_with
except ImportError as error:
    raise ImportError(
        "custom_generate={repo_id!r} needs the package hf_longctx. Run {install}."
    ) from error

SETTINGS = {settings}


def generate(inputs=None, *, model, {name}=None, **arguments):
    """As `model.generate(inputs, custom_generate={title}(...), **arguments)`. `{name}`: settings of this call."""
    return generate_with(SETTINGS, model, inputs, {name}, arguments)
'''
# what transformers looks up among the installed packages; hf_longctx is not there where it runs from a checkout
REQUIREMENTS = f"# hf_longctx: generate.py says how to install it\ntransformers>={TESTED[0]}\n"
README = """---
library_name: transformers
license: apache-2.0
tags:
- custom_generate
- hf_longctx
- long-context
- {name}
---

# {title}, a way to generate

{title}: {summary}. This repository holds no model: `generate` takes it from here for any causal language model.{paper}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
tokenizer = AutoTokenizer.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
inputs = tokenizer("Once upon a time, there was a river.", return_tensors="pt")
output = model.generate(
    **inputs, custom_generate="{repo_id}", trust_remote_code=True, tokenizer=tokenizer, max_new_tokens=40
)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```

It needs the package hf_longctx: run {install}. `revision=` takes a commit or tag of this repository.

{guidance}

{arguments}All else is as `generate` has it: streamers, stop strings, sampling, beams, several sequences.

{settings}"""
NO_CHOICE = "`{name}` has no settings.\n"
CHOICE = """## Settings

```json
{values}
```

Which win: those of the call, `{name}={{"{first}": ...}}`, over all others; those that the model carries, if it does
(`{title}(...).store_(model)`, saved in `generation_config.json`), over all of these.
"""
ALL_TAKE = ("tokenizer", "streamer", "assistant_model", "assistant_tokenizer")  # `generate` knows them


def texts(procedure: Procedure, repo_id: str) -> dict[str, str]:
    """The files of the repository `repo_id` by their paths. ValueError if nothing on the Hub can have that name."""
    validate_repo_id(repo_id)
    cls = type(procedure)
    said = {"name": procedure.name, "title": cls.__name__, "repo_id": repo_id, "install": INSTALL}
    values = dataclasses.asdict(procedure)
    own = _own_arguments(cls)
    about = {
        "summary": cls.summary,
        "paper": f" [The paper]({cls.paper})." if cls.paper else "",
        "guidance": "\n\n".join(f"**{label}:** {text}" for label, text in cls.guidance().items()),
        "arguments": f"Its own arguments of `generate` are {', '.join(f'`{name}`' for name in own)}. " if own else "",
        "settings": CHOICE.format(first=next(iter(values)), values=json.dumps(values, indent=2), **said)
        if values
        else NO_CHOICE.format(**said),
    }
    return {
        "custom_generate/generate.py": GENERATE.format(settings=_literal(procedure.spec()), **said),
        "custom_generate/requirements.txt": REQUIREMENTS,
        "README.md": README.format(**about, **said),
    }


def _own_arguments(cls: type[Procedure]) -> list[str]:
    """What a call can say besides the arguments of every `generate`."""
    known = {*inspect.signature(Procedure.__call__).parameters, *ALL_TAKE}
    found = inspect.signature(cls.__call__).parameters.values()
    return [one.name for one in found if one.name not in known and one.kind is not one.VAR_KEYWORD]


def _literal(settings: Mapping[str, Any]) -> str:
    """A dict as it stands in a Python file, one entry a line."""
    return "{\n" + "".join(f"    {name!r}: {value!r},\n" for name, value in settings.items()) + "}"
