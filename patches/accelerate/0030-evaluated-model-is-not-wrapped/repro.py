"""Does DDP wrap a model that was prepared for evaluation before it is for training? Exits 1 if not, else 0."""

import os
import sys
import tempfile

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel


def defect() -> str | None:
    """The class that a model becomes, evaluated before."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", ACCELERATE_USE_CPU="true")
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", f"file://{folder}/store", rank=0, world_size=1)
        accelerator, model = Accelerator(cpu=True), torch.nn.Linear(2, 2)
        assert isinstance(accelerator.prepare(torch.nn.Linear(2, 2)), DistributedDataParallel)
        wrapped = accelerator.prepare(accelerator.prepare_model(model, evaluation_mode=True))
        dist.destroy_process_group()
    return None if isinstance(wrapped, DistributedDataParallel) else f"it is still a {type(wrapped).__name__}"


if __name__ == "__main__":
    sys.exit(defect())
