"""What torchrun starts: one process of a part of the benchmark. Rank 0 prints what is measured."""

from __future__ import annotations

import importlib
import json
import sys
import traceback

import torch
import torch.distributed as dist

from .launching import SAMPLE
from .world import World


def main(part: str, settings: str) -> None:
    """Run `work` of the module `part`, a generator of samples."""
    given = json.loads(settings)
    world = World.join(given.pop("tiny"))
    torch.manual_seed(0)
    module = importlib.import_module(f".{part}", __package__)
    try:
        for sample in module.work(world, **given):
            if world.rank == 0:
                print(SAMPLE + json.dumps(sample), flush=True)
    except BaseException:
        traceback.print_exc()
        raise
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
