"""One GPU for each process: Trainer's way to split batches over several in one process is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object


class OneDeviceMixin(Base):
    """Put before a Trainer, refuses a process that sees several GPUs and was not started by a launcher.

    Trainer wraps the model in torch.nn.DataParallel there. Its replicas copy the attributes of a module, so a forward
    that was put on the model is bound to the original, on the first GPU; packs are one row, which cannot be split;
    and a batch of fewer rows than GPUs gets a loss that is multiplied by all of them.

    Raises:
        ValueError: Trainer counts several GPUs in this process.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # now: Trainer sets it to 1 for a model that is on several devices by its device_map
        gpus = self.args.n_gpu
        if gpus > 1:
            raise ValueError(
                f"{type(self).__name__}: {gpus} GPUs are visible to this one process, so Trainer would split each "
                f"batch among them by torch.nn.DataParallel, which neither copies what hf_longctx puts on a model "
                f"nor splits packed documents; expected one GPU for each process. Start {gpus} processes (accelerate "
                f"launch --num_processes {gpus}, torchrun --nproc_per_node {gpus}), or show this one a single GPU: "
                f"CUDA_VISIBLE_DEVICES=0 in its environment."
            )
