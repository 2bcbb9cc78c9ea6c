"""Best-fit-decreasing: which lengths go together, so that few packs hold them all."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs of at most `capacity`, as lists of the numbers of `lengths`.

    The longest comes first, and each goes where it fits and the least room is left. Equal lengths keep their order.

    Raises:
        ValueError: One is longer than the capacity, or is below 1.
    """
    packs: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # room that is left -> packs
    rooms: list[int] = []  # its keys, rising
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        length = lengths[number]
        if not 1 <= length <= capacity:
            raise ValueError(f"a length of {length}: expected 1 to {capacity}, the capacity of a pack.")
        at = bisect_left(rooms, length)
        if at == len(rooms):
            chosen, room = len(packs), capacity
            packs.append([])
        else:
            room = rooms[at]
            chosen = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[at]
        packs[chosen].append(number)
        left = room - length
        if left and left not in by_room:
            by_room[left] = []
            insort(rooms, left)
        if left:
            by_room[left].append(chosen)
    return packs
