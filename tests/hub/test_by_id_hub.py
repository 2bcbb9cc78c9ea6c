"""A procedure goes to the Hub, and `generate` takes it from there by its id."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hf_longctx.upstream.installing import INSTALL
from tests.children import python_path
from tests.hub.server import Hub

PUSHED = """
import torch
from hf_longctx import XL3M, ShareBeginning, share_beginning
from hf_longctx.hub import push_generate
from tests.generation.xl3m.test_xl3m import Heard
from tests.tiny import text, tiny

small = XL3M(segment=16, overlap=4, key_context=40)
push_generate("tester/xl3m", small, tag="v1")
push_generate("tester/xl3m", XL3M(segment=20, overlap=4, key_context=40), update=True)
push_generate("tester/share", ShareBeginning())
model, ids = tiny(max_position_embeddings=96), text(1, 400, seed=3)
how = dict(question=6, return_segments=True, max_new_tokens=5, do_sample=False)
wanted, (chosen,) = model.generate(ids, custom_generate=small, **how)
heard = Heard()
output, (found,) = model.generate(
    ids, custom_generate="tester/xl3m", revision="v1", trust_remote_code=True, streamer=heard, **how
)
assert torch.equal(output, wanted) and found.kept == chosen.kept
assert [token for tokens in heard.put_ for token in tokens] == output[0].tolist()
newer, (found,) = model.generate(ids, custom_generate="tester/xl3m", trust_remote_code=True, **how)
assert {one.stop - one.start for one in found.kept} == {20}
how = dict(num_return_sequences=3, max_new_tokens=5, do_sample=True)
samples = []
for chosen in (share_beginning, "tester/share"):
    torch.manual_seed(1)
    samples.append(model.generate(ids[:, :30], custom_generate=chosen, trust_remote_code=True, **how))
assert torch.equal(*samples)
print("equal")
"""
HIDDEN = """
import tests.without_package
from tests.tiny import text, tiny
try:
    tiny().generate(text(1, 9), custom_generate="tester/xl3m", trust_remote_code=True, max_new_tokens=2)
except ImportError as error:
    print(error)
"""


def test_pushed_and_taken_by_its_id_with_the_package_and_without(tmp_path: Path) -> None:
    with Hub() as hub:
        hub.users["good"] = "tester"

        def run(code: str, token: str | None, home: str) -> str:
            environment = {**hub.environment(token, home=tmp_path / home), "PYTHONPATH": python_path()}
            done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        assert run(PUSHED, "good", "with") == "equal"
        files = hub.repos["tester/xl3m"].at("main").files
        assert {"README.md", "custom_generate/generate.py", "custom_generate/requirements.txt"} <= set(files)
        assert (
            run(HIDDEN, None, "without")
            == f"custom_generate='tester/xl3m' needs the package hf_longctx. Run {INSTALL}."
        )
