"""Replay the history of a file: at each version a cache follows by PIE, and another is read anew.

python -m recipes.edit_history.replay [FILE | OLD NEW] [--most 50] [--refresh N] [--smoke]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_longctx.editing import EditSession
from hf_longctx.evaluation.results import result_file, write_results
from hf_longctx.evaluation.rows import row
from hf_longctx.hub import load
from hf_longctx.upstream.caches import given_cache
from recipes.outs import new_file

from .versions import from_git, from_two

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = Path(__file__).with_name("expected.json")
# two files of ours: from one to the other in a few changes
PAIR = [ROOT / "tests/reference/streaming_llm.py", ROOT / "tests/reference/lm_infinite.py"]


def replay(model: Any, tokenizer: Any, versions: list[str], refresh: int | None) -> Iterator[dict[str, Any]]:
    """One row for each change: seconds, tokens and how far the two caches' next-token distributions are apart."""
    session = EditSession(model, tokenizer, versions[0])
    for step, text in enumerate(versions[1:], start=1):
        if refresh and step % refresh == 0:
            session.refresh()
        start, end, new = _change(session.text, text)
        begun = time.perf_counter()
        report = session.replace(start, end, new)
        edited = _after(model, session)
        seconds = time.perf_counter() - begun
        begun = time.perf_counter()
        anew = EditSession(model, tokenizer, text)
        truth = _after(model, anew)
        yield {
            "change": step,
            "tokens": len(anew.ids),
            "read": report.forwarded + report.repaired + report.reread,
            "moved": report.moved,
            "places": report.edits,
            "seconds": seconds,
            "seconds anew": time.perf_counter() - begun,
            "kl": float((truth.exp() * (truth - edited)).sum()),
            "same": bool(truth.argmax() == edited.argmax()),
        }


def _change(old: str, new: str) -> tuple[int, int, str]:
    """What an editor would send: the characters of `old` that differ, and what is in their place."""
    start = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    most = min(len(old), len(new)) - start
    same = (i for i in range(most) if old[-1 - i] != new[-1 - i])
    tail = next(same, most)
    return start, len(old) - tail, new[start : len(new) - tail]


@torch.no_grad()
def _after(model: Any, session: EditSession) -> Tensor:
    """The distribution of what follows the text, as log-probabilities. The session's cache stays as it is."""
    ids = session.ids
    pos = torch.tensor([[len(ids) - 1]], device=model.device)
    token = torch.tensor([ids[-1:]], device=model.device)
    logits = model(token, position_ids=pos, **given_cache(model, session.cache), use_cache=True).logits[0, -1]
    session.cache.crop(-1)
    return logits.float().log_softmax(-1)


def tiny() -> tuple[Any, Any]:
    """A random model that reads bytes: for a try without a download."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8192,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    return model, PreTrainedTokenizerFast(tokenizer_object=inner)


def summary(found: list[dict[str, Any]]) -> dict[str, float]:
    """All changes together."""
    read, tokens = sum(r["read"] for r in found), sum(r["tokens"] for r in found)
    return {
        "changes": len(found),
        "tokens read": read,
        "tokens of full re-reads": tokens,
        "mean KL": sum(r["kl"] for r in found) / len(found),
        "same first choice": sum(r["same"] for r in found) / len(found),
        "times faster": sum(r["seconds anew"] for r in found) / sum(r["seconds"] for r in found),
    }


def unexpected(found: dict[str, float], expected: dict[str, Any]) -> list[str]:
    """What is not as `expected.json` says, in words."""
    return [
        f"{name}: {found[name]:.3g}, expected {e['value']} +- {e['tolerance']}"
        for name, e in expected.items()
        if abs(found[name] - e["value"]) > e["tolerance"]
    ]


def main(arguments: list[str] | None = None) -> int:
    """Print a line a change, and what all of them cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="one file that git tracks, or an old and a new one")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--most", type=int, default=50, help="versions of a file in git")
    parser.add_argument("--refresh", type=int, help="read everything anew at every so manieth change")
    parser.add_argument("--smoke", action="store_true", help="a tiny random model, and a check against expected.json")
    parser.add_argument("--out", type=new_file, help="a result file")
    args = parser.parse_args(arguments)
    if len(args.files) > 2:
        parser.error("expected one file that git tracks, or two files")
    files = args.files or PAIR
    versions = from_git(files[0], args.most) if len(files) == 1 else from_two(*(f.read_text("utf-8") for f in files))
    device = "cuda" if torch.cuda.is_available() and not args.smoke else "cpu"
    model, tokenizer = tiny() if args.smoke else load(args.model, device=device)
    found = []
    for r in replay(model, tokenizer, versions, args.refresh):
        found.append(r)
        print(
            f"change {r['change']:3}: {r['read']:5} of {r['tokens']:6,} tokens read, {r['moved']:6,} moved, "
            f"{1e3 * r['seconds']:7.1f} ms instead of {1e3 * r['seconds anew']:8.1f}, KL {r['kl']:.1e}",
            flush=True,
        )
    if not found:
        raise SystemExit(f"{files[0]} has one version, and an edit needs two.")
    total = summary(found)
    print(", ".join(f"{name} {value:.4g}" for name, value in total.items()))
    if args.out:
        rows = [row(name, value, "") for name, value in total.items()]
        write_results(args.out, result_file(rows, model=args.model, device=device, changes=found))
    wrong = unexpected(total, json.loads(EXPECTED.read_text("utf-8"))) if args.smoke and files is PAIR else []
    if args.smoke:
        print("\n".join(wrong) or "as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
