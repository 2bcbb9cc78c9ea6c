"""The part of a card that says how the model is loaded: with hf_longctx, without it, served, and for a text at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...upstream.installing import INSTALL
from .. import shim
from ..tiers import ADAPTER, DUAL, NATIVE, Tier
from .metadata import TEXT_GENERATION

_AUTO = {TEXT_GENERATION: "AutoModelForCausalLM", "image-text-to-text": "AutoModelForImageTextToText"}


def loading(
    repo_id: str, tokenizer: str | None, tier: Tier, tag: str, procedures: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Paragraphs with the commands.

    Args:
        repo_id: What the commands name.
        tokenizer: Where its tokenizer is; None without one.
        tier: What loading gives.
        tag: The pipeline tag, by which the Auto class is chosen.
        procedures: The settings of ways to generate that it carries.
    """
    auto = _AUTO.get(tag, "AutoModel")
    text = tokenizer if tag == TEXT_GENERATION else None
    ours = tier is not NATIVE or bool(procedures)
    parts = [f"To install hf_longctx: {INSTALL}."] if ours else []
    parts += ["With hf_longctx:"] if ours else ["With transformers alone:"]
    parts.append(_python(repo_id, text, auto, tier, procedures))
    if tier is not NATIVE:
        what = "the adapter on its base as it is" if tier is ADAPTER else "the stock model"
        plain = [f"from transformers import {auto}", "", f'model = {auto}.from_pretrained("{repo_id}")']
        parts += [f"Without hf_longctx, {what}:", _block("python", plain)]
    if tag == TEXT_GENERATION and tokenizer:
        parts += ["From the command line:", _block("bash", _generate(repo_id, procedures))]
        parts += _serve(repo_id, tier, procedures)
    if tier is DUAL:
        parts.append(
            f"A copy that is saved without hf_longctx loses {shim.FILE}, which `trust_remote_code=True` needs: "
            f"`hf-longctx hub repair FOLDER` writes it again."
        )
    return parts


def _python(repo_id: str, tokenizer: str | None, auto: str, tier: Tier, procedures: Sequence[Mapping[str, Any]]) -> str:
    trust = ", trust_remote_code=True" if tier is DUAL else ""
    imported = ["import hf_longctx"] if procedures or tier not in (NATIVE, DUAL) else []
    lines = [
        f"from transformers import {auto}{', AutoTokenizer' if tokenizer else ''}",
        *(["", *imported] if imported else []),
        "",
        f'model = {auto}.from_pretrained("{repo_id}"{trust})',
    ]
    if tokenizer:
        lines += [
            f'tokenizer = AutoTokenizer.from_pretrained("{tokenizer}")',
            'inputs = tokenizer("Once upon a time", return_tensors="pt")',
            *([] if procedures else ["output = model.generate(**inputs, max_new_tokens=20)"]),
            *(
                f"output = model.generate(**inputs, custom_generate=hf_longctx.{one['name']}, max_new_tokens=20)"
                for one in procedures
            ),
            "print(tokenizer.decode(output[0]))",
        ]
    return _block("python", lines)


def _generate(repo_id: str, procedures: Sequence[Mapping[str, Any]]) -> list[str]:
    plain = [f'hf-longctx generate {repo_id} --prompt "Once upon a time" --max-new-tokens 20']
    asked = '--document report.txt --question "What does it say?"'
    return [f"hf-longctx generate {repo_id} --method {one['name']} {asked}" for one in procedures] or plain


def _serve(repo_id: str, tier: Tier, procedures: Sequence[Mapping[str, Any]]) -> list[str]:
    if tier is ADAPTER:
        return ["An adapter is not served: merge it (`model.merge_and_unload()`), save it and serve that."]
    parts = ["To serve it with an OpenAI-compatible API:", _block("bash", [f"hf-longctx serve {repo_id}"])]
    if tier is NATIVE:
        other = "`transformers serve` and other engines serve it as well."
        return [*parts, f"{other} No request can ask for a procedure." if procedures else other]
    return [
        *parts,
        f"`transformers serve` and other engines serve the stock model. `hf-longctx hub check {repo_id}` says what it "
        f"loads as.",
    ]


def _block(language: str, lines: Sequence[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])
