"""Decoding of one source tree beside another, in one run on one GPU: has a change made served models slower?

python -m recipes.benchmarks.paired_decode OLD NEW      # folders with a hf_longctx in each
python -m recipes.benchmarks.paired_decode OLD NEW --tiny

A random Llama of 135M geometry under LMInfinite(n_local=8192) reads 9,000 tokens and writes 290, of which the last 250
are timed. A process per tree stays for several samples, and the two take turns: what slows the machine for a while
slows both. New processes now and then, because a process may be slower than its twin all its life.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any

from recipes.outs import RESULT_OPTION

BATCHES = (1, 8)
ROUNDS, PAIRS = 3, 7  # pairs of processes, and pairs of samples of each
WARM, TIMED, READ = 40, 250, 9000
SAMPLE = "SAMPLE "
RUN = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"  # without the modules beside this file


def subject(tiny: bool) -> tuple[Any, str]:
    """The random model, on its device. Only public names here: the tree may be an old one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    device = "cuda" if torch.cuda.is_available() and not tiny else "cpu"
    config = LlamaConfig(
        hidden_size=72 if tiny else 576,
        intermediate_size=1536,
        num_hidden_layers=3 if tiny else 30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=8 if tiny else 64,
        vocab_size=49152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        eos_token_id=None,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16 if device == "cuda" else torch.float32).eval()
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)  # frequencies stay fp32
    return model, device


def decoding(tiny: bool) -> None:
    """Answer every batch size on stdin with milliseconds per token."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    import hf_longctx

    warm, timed, read = (2, 6, 40) if tiny else (WARM, TIMED, READ)
    model, device = subject(tiny)

    class Clock(StoppingCriteria):
        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            if len(self.times) in (warm, warm + timed) and device == "cuda":
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool, device=device)

    with hf_longctx.LMInfinite(n_local=16 if tiny else 8192).on(model):
        print(SAMPLE + str(hf_longctx.__file__), flush=True)
        for line in sys.stdin:
            ids, clock = torch.randint(3, 49000, (int(line), read), device=device), Clock()
            settings = {"max_new_tokens": warm + timed + 1, "do_sample": False, "pad_token_id": 0}
            model.generate(ids, **settings, stopping_criteria=StoppingCriteriaList([clock]))
            print(f"{SAMPLE}{(clock.times[warm + timed] - clock.times[warm]) / timed * 1e3}", flush=True)


def looking_up(tiny: bool) -> None:
    """Answer on stdin: "read N" with seconds of reading, "write N" with ms of a token after N; LMInfinite(top_k=5)."""
    import torch

    import hf_longctx

    model, device = subject(tiny)
    warm, timed = (1, 2) if tiny else (4, 16)

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    with hf_longctx.LMInfinite(n_local=16 if tiny else 8192, top_k=5).on(model):
        print(SAMPLE + str(hf_longctx.__file__), flush=True)
        for line in sys.stdin:
            kind, n = line.split()
            ids, start = torch.randint(3, 49000, (int(n),)), now()
            reader = hf_longctx.stream(model, ids, chunk=2048, bounded=False)  # scores of a chunk are held at once
            taken, times = now() - start, []
            if kind == "write":
                # no token has the id that ends
                for _ in reader.generate(max_new_tokens=warm + timed + 1, do_sample=False, eos_token_id=49152):
                    times.append(now())
                taken = (times[-1] - times[warm]) / timed * 1e3
            print(f"{SAMPLE}{taken}", flush=True)


WORK = {"decoding": decoding, "looking_up": looking_up}


class Worker:
    """A process that imports hf_longctx from one tree, and does one kind of `WORK`."""

    def __init__(self, tree: Path, tiny: bool, kind: str = "decoding") -> None:
        self.tree = tree.resolve()
        command = [sys.executable, "-W", "ignore", "-c", RUN, __file__, "--worker", kind, *(["--tiny"] * tiny)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.tree,
            env={**os.environ, "PYTHONPATH": str(self.tree)},
        )

    def ready(self) -> None:
        """Wait until its model is built; RuntimeError where it imported another tree."""
        found = Path(self._answer()).resolve()
        if not found.is_relative_to(self.tree):
            raise RuntimeError(f"{self.tree}: its process imported {found}. Is there a hf_longctx in this folder?")

    def sample(self, asked: int | str) -> float:
        """What its work answers."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{asked}\n")
        self.process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(SAMPLE):
                return line.removeprefix(SAMPLE).strip()
        raise RuntimeError(f"{self.tree}: its process ended with {self.process.wait()}")


def samples(trees: tuple[Path, Path], tiny: bool) -> dict[int, list[tuple[float, float]]]:
    """By batch size, pairs of milliseconds per token of the two trees, each measured right after the other."""
    found: dict[int, list[tuple[float, float]]] = {batch: [] for batch in BATCHES}
    for _ in range(1 if tiny else ROUNDS):
        workers = [Worker(tree, tiny) for tree in trees]
        try:
            for worker in workers:
                worker.ready()
                for batch in BATCHES:
                    worker.sample(batch)  # compiles kernels
            for i in range(2 if tiny else PAIRS):
                for batch in BATCHES:
                    order = (0, 1) if i % 2 == 0 else (1, 0)
                    taken = {side: workers[side].sample(batch) for side in order}
                    found[batch].append((taken[0], taken[1]))
                    print(f"batch {batch}: {taken[0]:.3f} and {taken[1]:.3f} ms", flush=True)
        finally:
            for worker in workers:
                worker.close()
    return found


def rows(trees: tuple[Path, Path], tiny: bool) -> Iterator[dict[str, Any]]:
    """The median ratio of the pairs, and how far they lie apart."""
    from hf_longctx.evaluation.rows import row

    for batch, pairs in samples(trees, tiny).items():
        ratios = [new / old for old, new in pairs]
        low, _, high = quantiles(ratios, n=4)
        beside = {"old, ms": median(old for old, _ in pairs), "new, ms": median(new for _, new in pairs)}
        beside |= {"quarter of the pairs below": low, "quarter above": high}
        what = f"decoding under LMInfinite, batch {batch}: time per token of the new tree over the old one's"
        what += f", median of {len(pairs)} pairs"
        yield row(what, median(ratios), "", bar="<= 1.03", beside=beside, detail={"ms": pairs})


def main() -> None:
    """Measure two trees, print the ratios, and write the result file."""
    if "--worker" in sys.argv:
        WORK[sys.argv[sys.argv.index("--worker") + 1]]("--tiny" in sys.argv)
        return
    import torch

    from recipes.benchmarks.reading import finish

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="folder that has the old hf_longctx in it")
    parser.add_argument("new", type=Path, help="folder that has the new one")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, to see that it runs")
    parser.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    parser.add_argument("--out", **RESULT_OPTION)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() and not args.tiny else "cpu")
    label = f"a random Llama of 135M geometry{', tiny' * args.tiny}, {'bfloat16' if device.type == 'cuda' else 'fp32'}"
    finish(SimpleNamespace(device=device), rows((args.old, args.new), args.tiny), args, "paired_decode", label=label)


if __name__ == "__main__":
    main()
