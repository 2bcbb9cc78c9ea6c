"""Longest first, each document to the group that has then the least to do: for any number of documents and ranks."""

from __future__ import annotations

import heapq

from .work import Assignment, Shape, Work


def greedy(work: Work, shape: Shape, below: float = float("inf")) -> Assignment | None:
    """Documents in groups of this shape; None where one finds no room, or where it takes `below` seconds or more."""
    # groups of a size are alike but for what they hold, so only the one with the least to do is looked at
    lowest = work.lowest(shape)
    if lowest >= below:
        return None
    heaps: dict[int, list[tuple[float, int, int]]] = {}
    for number, size in enumerate(shape):
        heaps.setdefault(size, []).append((work.fixed[size], number, work.capacity * size))
    documents: list[list[int]] = [[] for _ in shape]
    for n, length in enumerate(work.lengths):
        best, chosen, chosen_size = below, None, 0
        for size, heap in heaps.items():
            seconds = work.seconds[size][n]
            group = heap[0]
            if group[2] < length:
                group = min((one for one in heap if one[2] >= length), default=group)
            if group[2] >= length and group[0] + seconds < best:
                best, chosen, chosen_size = group[0] + seconds, group, size
        if chosen is None:
            return None
        heap = heaps[chosen_size]
        changed = best, chosen[1], chosen[2] - length
        if chosen is heap[0]:
            heapq.heapreplace(heap, changed)
        else:
            heap[heap.index(chosen)] = changed
            heapq.heapify(heap)
        documents[chosen[1]].append(n)
    worst = max(lowest, *(group[0] for heap in heaps.values() for group in heap))
    return Assignment(worst, shape, tuple(map(tuple, documents))) if worst < below else None
