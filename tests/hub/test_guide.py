"""The lines of docs/hub.md, on tiny models; the server's are run in test_serve.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.children import python_path

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "hub.md").read_text(encoding="utf-8"), re.DOTALL)
BEFORE = """
import hf_longctx.hub
from hf_longctx import LMInfinite
from tests.tiny import text, tiny, tokenizer

tiny().save_pretrained("stock")
tokenizer().save_pretrained("stock")
pushed = []
hf_longctx.hub.load = lambda name: (tiny(), tokenizer())
hf_longctx.hub.push = lambda *args, **kwargs: pushed.append((args, kwargs))
ids = text(1, 600, seed=1)
"""
AFTER = """
((pushed_model, repo_id), options), = pushed
assert repo_id == "you/smollm2-long" and options["private"] and hf_longctx.applied(pushed_model)
assert type(classes_model).__name__ == "LongCtxLlamaForCausalLM"
assert hf_longctx.hub.check("smollm2-long").tier.name == "dual"
assert output.shape[1] == 620
print("right")
"""


def test_lines_of_the_guide_run_as_pasted(tmp_path: Path) -> None:
    push, classes, by_id = [block for block in BLOCKS if "OpenAI" not in block]
    classes = classes.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "stock")
    code = "\n".join([BEFORE, push, classes, "classes_model = model", by_id, AFTER])
    environment = {**os.environ, "PYTHONPATH": python_path(), "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().splitlines()[-1:] == ["right"], done.stderr
