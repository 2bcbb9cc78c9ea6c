"""Do the ranks of a group have the same batch? One small exchange, read together with the documents of the batch."""

# B rows, T tokens of a row, F facts of a batch
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..peers import Peers
from .groups import Groups

REFUSED = 2**62  # in place of a batch that its rank has refused
MIX = 2654435761  # so that tokens which change places change the sum
COMPARED = ("input_ids", "inputs_embeds", "position_ids", "marks", "labels")


class RefusedElsewhereError(ValueError):
    """Another rank has refused its batch."""


@dataclass(frozen=True, eq=False)
class Facts:
    """What ranks compare: the shape of each tensor, a sum that depends on values and places, and the loss's divisor."""

    names: list[str]
    values_F: Tensor

    @classmethod
    def of(cls, batch: dict[str, Tensor | None], items: Any, device: torch.device) -> Facts:
        """Of a batch whose embeddings, which may differ by dropout, are compared by their shape only."""
        shapes: dict[str, int] = {}
        sums: dict[str, Tensor] = {}
        for name, x in batch.items():
            shapes[f"rows of {name}"] = -1 if x is None else x.shape[0]
            shapes[f"length of {name}"] = -1 if x is None else x.shape[1]
            if x is None or x.is_floating_point():
                shapes[name] = 0
            else:
                weights = torch.arange(x.numel(), device=device) * MIX + 1
                sums[name] = (x.to(device).flatten().to(torch.int64) * weights).sum()
        divisor = torch.as_tensor(-1.0 if items is None else items, dtype=torch.float64).flatten()[0]
        sums["num_items_in_batch"] = divisor.to(device, non_blocking=True).view(torch.int64)
        sizes = torch.tensor(list(shapes.values())).to(device, non_blocking=True)
        return cls([*shapes, *sums], torch.cat([sizes, torch.stack(list(sums.values()))]))


def read_together(marks_BT: Tensor, facts: Facts, groups: Groups) -> Tensor:
    """The marks on the host, once all ranks of the group have shown the same facts; ValueError with both if not."""
    all_PF = _shown(facts.values_F, groups)
    # one read for both: each waits for the device
    whole = torch.cat([marks_BT.flatten(), all_PF.view(torch.uint8)]).cpu()
    _compare(whole[marks_BT.numel() :].clone().view(torch.int64).view(groups.size, -1), facts.names, groups.rank)
    return whole[: marks_BT.numel()].view(marks_BT.shape)


def say_refused(device: torch.device, groups: Groups) -> None:
    """Tell the other ranks that this one has refused its batch: they wait for its facts."""
    batch: dict[str, Tensor | None] = dict.fromkeys(COMPARED)
    _shown(torch.full_like(Facts.of(batch, None, device).values_F, REFUSED), groups)


def _shown(mine_F: Tensor, groups: Groups) -> Tensor:
    return mine_F if groups.size == 1 else Peers(groups.whole).gather(mine_F, ahead=False)()


def _compare(all_PF: Tensor, names: list[str], rank: int) -> None:
    for other, theirs_F in enumerate(all_PF):
        if torch.equal(theirs_F, all_PF[rank]):
            continue
        if bool((theirs_F == REFUSED).all()):
            raise RefusedElsewhereError(
                f"rank {other} of the group has refused its batch. See the message of that rank."
            )
        off = (theirs_F != all_PF[rank]).nonzero()[:, 0].tolist()
        shown = "; ".join(f"{names[i]}: {int(all_PF[rank, i])} here, {int(theirs_F[i])} there" for i in off)
        raise ValueError(
            f"rank {rank} and rank {other} of a sequence-parallel group got different batches ({shown}). All ranks of "
            f"a group take the same batch: give Accelerate a SequenceParallelConfig, or seed the ranks of a group's "
            f"samplers alike."
        )
