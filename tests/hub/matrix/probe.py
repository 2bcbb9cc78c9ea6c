"""`python -m tests.hub.matrix.probe SPEC`: loads what the JSON file SPEC lists, and prints a line of JSON for each.

The package hf_longctx is hidden, left alone or imported before anything else is.
"""

from __future__ import annotations

import base64
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME = "hf_longctx"


def prepare(package: str) -> None:
    """Bring the process into the state that a row calls `package`."""
    if package == "absent":
        import tests.without_package  # noqa: F401
    elif package == "imported":
        import hf_longctx  # noqa: F401


# -- ways to load: each gives the model, or a description of what it is not -------------------------------------------
Way = Callable[[str, dict[str, Any], dict[str, Any]], Any]


def by(module: str, name: str) -> Way:
    """`from_pretrained` of a class, which is imported when it is called."""

    def load(where: str, asked: dict[str, Any], spec: dict[str, Any]) -> Any:
        return getattr(importlib.import_module(module), name).from_pretrained(where, **asked)

    return load


def pipeline(where: str, asked: dict[str, Any], spec: dict[str, Any]) -> Any:
    import transformers

    pipe = transformers.pipeline("text-generation", where, **asked)
    turns = pipe([{"role": "user", "content": spec["chat"]}], max_new_tokens=spec["steps"], do_sample=False)
    said["chat"] = turns[0]["generated_text"][-1]["content"]
    return pipe.model


def peft(where: str, asked: dict[str, Any], spec: dict[str, Any]) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(causal(spec["base"], asked, spec), where)


causal = by("transformers", "AutoModelForCausalLM")
WAYS: dict[str, Way] = {
    "causal": causal,
    "base": by("transformers", "AutoModel"),
    "classification": by("transformers", "AutoModelForSequenceClassification"),
    "pipeline": pipeline,
    "peft": peft,
    "class": by("hf_longctx.models", "LongCtxLlamaForCausalLM"),
    "config": by("transformers", "AutoConfig"),
    "tokenizer": by("transformers", "AutoTokenizer"),
}
said: dict[str, Any] = {}  # by the load that runs


def look(model: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """What a model is and says."""
    import torch

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kind = type(inner)
    answer: dict[str, Any] = {"class": f"{kind.__module__}.{kind.__name__}"}
    if not isinstance(inner, torch.nn.Module):
        return answer
    ids = torch.tensor([spec["ids"]])
    asked = inner.model if hasattr(inner, "score") else model  # a head of random weights says nothing
    with torch.no_grad():
        output = asked.eval()(ids, use_cache=False)
    numbers = output.logits if "logits" in output else output.last_hidden_state
    answer["numbers"] = base64.b64encode(numbers.numpy().tobytes()).decode()
    if hasattr(inner, "lm_head"):
        written = model.generate(ids, max_new_tokens=spec["steps"], do_sample=False)
        answer["tokens"] = written[0, ids.shape[1] :].tolist()
        answer["xl3m"] = getattr(model.generation_config, "xl3m", None)
    return answer


def load(row: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """One row's answer, or its error."""
    said.clear()
    began, before = time.monotonic(), NAME in sys.modules
    asked = {name: row[name] for name in ("trust_remote_code", "revision") if row[name] is not None}
    try:
        if row["before"]:
            causal(row["before"], {"trust_remote_code": True}, spec)
        answer = look(WAYS[row["way"]](row["where"], asked, {**spec, "base": row["base"]}), spec)
    except Exception as error:  # whatever it is, it is the answer
        answer = {"error": type(error).__name__, "text": str(error)}
    seconds = round(time.monotonic() - began, 1)
    here = {"imported_before": before, "imported": NAME in sys.modules, "seconds": seconds}
    return {"name": row["name"], **answer, **said, **here}


if __name__ == "__main__":
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    prepare(task["package"])
    for line in task["rows"]:
        print(json.dumps(load(line, task)), flush=True)
