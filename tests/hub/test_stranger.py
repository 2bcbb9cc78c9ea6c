"""README's lines for someone who finds a model on the Hub, in a process without hf_longctx and in one with it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_longctx.upstream.installing import INSTALL
from tests.children import python_path
from tests.hub.server import Hub

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
(LINES,) = [block for block in BLOCKS if "you/smollm2-long" in block]
STOCK = "HuggingFaceTB/SmolLM2-135M-Instruct"

PUBLISH = f"""
import sys, tempfile
from pathlib import Path
from hf_longctx import XL3M, LMInfinite
from hf_longctx.hub import push, push_generate
from tests.tiny import tiny, tokenizer

folder = Path(tempfile.mkdtemp())
tiny(max_position_embeddings=64).save_pretrained(folder)
tokenizer().save_pretrained(folder)
push(folder, {STOCK!r}, token="theirs")
push(folder, "you/smollm2-long", method=LMInfinite(n_global=2, n_local=8))
push_generate("you/xl3m", XL3M(segment=16, overlap=4, question_tokens=4, key_context=24))
"""
REPORT = "w3 w4 w5 w6 w7 w8 w9 " * 40
HIDDEN = "import tests.without_package\n"
CHECK = """
import torch
from tests.tiny import tiny
from hf_longctx import XL3M, LMInfinite
plain = tiny(max_position_embeddings=64)
ids = inputs["input_ids"]
assert type(model).__name__ == "LongCtxLlamaForCausalLM" and type(stock).__name__ == "LlamaForCausalLM"
how = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids)}
with LMInfinite(n_global=2, n_local=8).on(tiny(max_position_embeddings=64)) as extended:
    wanted = extended.generate(ids, **how)
assert torch.equal(model.generate(ids, **how), wanted) and not torch.equal(plain.generate(ids, **how), wanted)
settings = XL3M(segment=16, overlap=4, question_tokens=4, key_context=24)
again = plain.generate(ids, custom_generate=settings, question="w9 w11", tokenizer=tokenizer, max_new_tokens=20)
assert torch.equal(output, again)
print("equal")
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub() as hub:
        hub.users |= {"good": "you", "theirs": STOCK.partition("/")[0]}
        run(hub, tmp_path_factory.mktemp("publisher"), PUBLISH, token="good")
        yield hub


def run(hub: Hub, folder: Path, code: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
    """A new process with a cache of its own, in a folder with the report that README's lines read."""
    (folder / "report.txt").write_text(REPORT)
    environment = {**hub.environment(token, home=folder / "home"), "PYTHONPATH": python_path()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)
    assert token is None or done.returncode == 0, done.stderr
    return done


def with_tiny_words(code: str) -> str:
    return code.replace("\\n\\nWho wrote it?", " w9 w11").replace("Who wrote it?", "w9 w11")  # the tiny tokenizer's own


def test_with_the_package_they_give_the_extended_model_and_the_procedure(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, with_tiny_words(LINES) + CHECK)
    assert done.stdout.strip() == "equal", done.stderr


def test_without_the_package_one_line_says_what_to_install(hub: Hub, tmp_path: Path) -> None:
    load, rest = with_tiny_words(LINES).split("\n\n# a way")
    done = run(hub, tmp_path, HIDDEN + load)
    assert f"To install it: {INSTALL}." in done.stderr.strip().splitlines()[-1]
    assert (
        done.stderr.strip().splitlines()[-1].startswith("ImportError: This model reads long texts through hf_longctx")
    )
    imports = load.partition("\n\n")[0]
    done = run(hub, tmp_path, HIDDEN + imports + "\n# a way" + rest)
    assert INSTALL in done.stderr.strip().splitlines()[-1]
    plain = load.replace(", trust_remote_code=True", "")
    done = run(hub, tmp_path, HIDDEN + plain + "\nprint(type(model).__name__)")
    assert done.stdout.strip() == "LlamaForCausalLM", done.stderr
