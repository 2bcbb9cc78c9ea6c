"""`Groups`: the processes that share a batch, found once when the switch is applied."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from .backend import check_backend

# of each process group of all ranks: those of its successors are others
_MADE: WeakKeyDictionary[Any, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()
Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Groups:
    """The processes that share a batch. Copies of a model share them.

    Args:
        whole: Their process group; None: this process alone.
        outer: For hybrid, those with this rank's number on every host.
        inner: For hybrid, those of this rank's host.
    """

    whole: Any = None
    outer: Any = None
    inner: Any = None

    @classmethod
    def of(cls, degree: int, kind: str, mesh: DeviceMesh | None, heads: int, device: str) -> Groups:
        """Groups of `degree` successive ranks, or those of a mesh. Every process of the world calls it.

        Args:
            degree: How many ranks share a batch.
            kind: "hybrid" needs groups inside of the group, one a host.
            mesh: Of one dimension, the ranks that share a batch; for hybrid of two, hosts and the ranks of a host.
            heads: Query heads of the model: the ranks of a host share them.
            device: The type of device that a new mesh is for.
        """
        if degree == 1 and mesh is None:
            return cls()
        if not dist.is_initialized():
            raise RuntimeError(
                f"degree={degree}: there is no process group. Start the script with `torchrun --nproc_per_node "
                f"{degree}` and call torch.distributed.init_process_group() first (Trainer and Accelerator do)."
            )
        check_backend(device)
        world = dist.get_world_size()
        if world % degree:
            raise ValueError(
                f"degree={degree}: {world} processes cannot be split into groups of {degree}. Choose a degree that "
                f"divides {world}, or start another number of processes."
            )
        if mesh is None:
            inside = ranks_inside(degree, heads) if kind == "hybrid" else degree
            return _successive((world // degree, degree // inside, inside), kind == "hybrid", device)
        if mesh.size() != degree:
            raise ValueError(f"degree={degree}: the mesh has {mesh.size()} ranks, expected {degree}.")
        if kind != "hybrid":
            return cls((mesh if mesh.ndim == 1 else mesh._flatten()).get_group())
        if mesh.ndim != 2:
            raise ValueError(
                f"kind='hybrid': the mesh has {mesh.ndim} dimension, expected two: hosts, and the ranks of a host. "
                f"Leave the mesh out, or give one of two dimensions."
            )
        return cls(mesh._flatten().get_group(), mesh.get_group(0), mesh.get_group(1))

    @property
    def size(self) -> int:
        """How many processes they are."""
        return 1 if self.whole is None else dist.get_world_size(self.whole)

    @property
    def rank(self) -> int:
        """Which of them this process is."""
        return 0 if self.whole is None else dist.get_rank(self.whole)

    def __deepcopy__(self, memo: Any) -> Groups:
        return self


def _successive(shape: tuple[int, int, int], hybrid: bool, device: str) -> Groups:
    """Groups of successive ranks."""

    def make() -> Groups:
        names = "data", "outer", "inner"
        mesh = init_device_mesh(device, shape, mesh_dim_names=names)[names[1:]]
        inner = mesh["inner"].get_group()
        return Groups(mesh._flatten().get_group(), mesh.get_group(0), inner) if hybrid else Groups(inner)

    return made_once((shape, hybrid, device), make)


def made_once(key: tuple[Any, ...], make: Callable[[], Made]) -> Made:
    """What was made of process groups under this key, or what `make` makes: all processes ask in the same order.

    Each group takes threads, or memory of a card, as long as the process lives.
    """
    made = _MADE.setdefault(dist.group.WORLD, {})
    if key not in made:
        made[key] = make()
    found: Made = made[key]
    return found


def ranks_inside(degree: int, heads: int) -> int:
    """How many ranks of a group exchange heads in the hybrid: those of a host, or fewer where one host has them all."""
    local = ranks_of_a_host()
    fits = [n for n in range(1, degree) if degree % n == 0 and n <= heads and (local >= degree or local % n == 0)]
    return max(fits, default=1)


def ranks_of_a_host() -> int:
    """How many processes run on a host, as the launcher says; all of them where it says nothing."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or (dist.get_world_size() if dist.is_initialized() else 1)
