"""Steps of packed documents on one host: groups of each step beside fixed degrees. See `flexible_groups`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hf_longctx import SequenceParallel
from hf_longctx.evaluation.rows import row
from hf_longctx.parallel.flexible import plan_step
from hf_longctx.parallel.model.calibration import calibrate
from hf_longctx.parallel.model.forward import STATE
from hf_longctx.training.processes import joined
from hf_longctx.upstream.checkpointing import enable_checkpointing

from .flexible_groups import DISTRIBUTIONS, documents
from .reading import K, finish

STEPS = 3  # of each distribution: by the cost model of two H200s, 3 rounds of 4 schemes take 30 to 45 s
EVERY = "every document cut by all cards"
AUTO = "groups of each step"
# 1.24B parameters with a vocabulary of 128k; with this one the stock head's logits fit beside 64k tokens
LARGE = {
    **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    **{"num_key_value_heads": 8, "head_dim": 64, "vocab_size": 16384, "max_position_embeddings": 128 * K},
}
TINY = LARGE | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 97}


def measure(args: argparse.Namespace) -> None:
    """Calibrate, time all schemes on the same steps, and write the results on the first process."""
    with joined() as ranks:
        if ranks == 1:
            raise SystemExit("Start it with torchrun --nproc_per_node 2.")
        device = "cuda" if torch.cuda.is_available() and not args.tiny else "cpu"
        torch.manual_seed(0)
        config = LlamaConfig(**(TINY if args.tiny else LARGE), tie_word_embeddings=True)
        with torch.device(device):
            model: Any = LlamaForCausalLM(config).to(torch.float32 if args.tiny else torch.bfloat16).train()
        model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)  # frequencies stay fp32
        enable_checkpointing(model, {"use_reentrant": False})
        costs = calibrate(model, tokens=4 * K if args.tiny else 32 * K, seconds=4 if args.tiny else 20)
        say(f"costs of groups: {json.dumps(dataclasses.asdict(costs))}")
        found = rows(model, ranks, costs, 128 if args.tiny else 32 * K)
        if dist.get_rank() == 0:
            label = f"Llama of 1.24B geometry, {ranks} cards, random weights, bfloat16, full recomputation"
            finish(model, found, args, "flexible_groups_measured", label=label, costs=dataclasses.asdict(costs))
        else:
            list(found)


def rows(model: Any, ranks: int, costs: Any, tokens: int) -> Iterator[dict[str, Any]]:
    """The best fixed degree over groups of each step, for each distribution; `tokens` of a card and step."""
    for name, shape in DISTRIBUTIONS.items():
        rng = random.Random(0)
        steps = [documents(tokens * ranks, shape, tokens * ranks, rng) for _ in range(STEPS)]
        took = timed(model, schemes(ranks, costs), steps, name)
        sums = {scheme: sum(seconds) for scheme, seconds in took.items()}
        fixed = [s for scheme, s in sums.items() if scheme not in (AUTO, EVERY)]
        what = f"{ranks} cards, {name}: time of the best fixed degree over that of groups of each step"
        speeds = {f"{scheme}, tokens/s": tokens * ranks * STEPS / s for scheme, s in sums.items()}
        speeds[f"over {EVERY}"] = sums[EVERY] / sums[AUTO]
        yield row(what, min(fixed) / sums[AUTO], "x", bar=">= 0.98", beside=speeds, detail={"s": took, "steps": steps})


def schemes(ranks: int, costs: Any) -> dict[str, tuple[SequenceParallel, Callable[..., Any] | None]]:
    """Each scheme's switch, and its planner where the switch plans."""
    auto = SequenceParallel(degree="auto")
    degrees = [2**k for k in range(ranks.bit_length())]
    found: dict[str, tuple[SequenceParallel, Callable[..., Any] | None]] = {
        f"degree {d}": (auto, partial(plan_step, ranks=ranks, costs=costs, sizes=(d,))) for d in degrees
    }
    found[EVERY] = SequenceParallel(degree=ranks, cut="all"), None
    return found | {AUTO: (auto, partial(plan_step, ranks=ranks, costs=costs))}


def timed(model: Any, ways: dict[str, Any], steps: list[list[int]], name: str) -> dict[str, list[float]]:
    """Seconds of each step by each scheme: all of a step in turn, once untimed, since kernels are built for lengths."""
    begun = time.perf_counter()
    took: dict[str, list[float]] = {scheme: [] for scheme in ways}
    for number, lengths in enumerate(steps, 1):
        losses = []
        for round_ in range(3):
            for scheme, (switch, planner) in ways.items():
                with switch.on(model):
                    state = vars(model)[STATE]
                    if planner is not None:
                        state.flexible = dataclasses.replace(state.flexible, planned=planner)
                    seconds, loss = one(model, lengths)
                losses.append(loss)
                if round_ == 1:
                    took[scheme].append(seconds)
                elif round_ == 2:
                    took[scheme][-1] = min(took[scheme][-1], seconds)
        each = ", ".join(f"{scheme} {seconds[-1]:.3f} s" for scheme, seconds in took.items())
        say(f"{name}, step {number} of {len(steps)} after {time.perf_counter() - begun:.0f} s: {each}")
        assert max(losses) - min(losses) <= 1e-2 * max(losses), f"schemes differ: losses {losses}"
    return took


def one(model: Any, lengths: list[int]) -> tuple[float, float]:
    """A forward and backward pass: seconds of the slowest process, and the loss."""
    ids = torch.randint(model.config.vocab_size, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    batch = {"input_ids": ids.to(model.device), "position_ids": positions.to(model.device)}
    dist.barrier()
    wait(model)
    start = time.perf_counter()
    loss: Tensor = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    wait(model)
    seconds = torch.tensor(time.perf_counter() - start, dtype=torch.float64, device=model.device)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    model.zero_grad(set_to_none=True)
    return float(seconds), float(loss.detach())


def say(line: str) -> None:
    """A line of the first process, at once."""
    if dist.get_rank() == 0:
        print(line, flush=True)


def wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
