"""The common stretches of two lists of tokens, in order, found in time that is linear in their length.

Beginnings and ends that agree are cut off at once. Between them, runs of tokens that occur once on either side are
anchors (a patience diff), and only short gaps are compared token by token.
"""

# all arrays are 1-D, of token ids; NumPy, as torch hands long arrays to threads, which takes longer than the work
from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

GRAMS = (8, 4)  # lengths of anchors; the second one is for the gaps between those of the first
SHORT = 128  # gaps up to here are compared token by token
CHANCE = 4  # shorter agreements between two edits are chance, and a forward for them costs more than they save
_BASE = 6364136223846793005  # of the polynomial that hashes a run of tokens, modulo 2^64


class Match(NamedTuple):
    """Tokens old[old : old + length] that are new[new : new + length]."""

    old: int
    new: int
    length: int


def matches(old: Ids, new: Ids) -> list[Match]:
    """The stretches that both have, in order; between two of them something differs."""
    found: list[Match] = []
    for match in _between(old, new, Match(0, 0, 0), Match(len(old), len(new), 0), GRAMS):
        last = found[-1] if found else Match(0, 0, 0)
        if found and (last.old + last.length, last.new + last.length) == match[:2]:
            found[-1] = Match(last.old, last.new, last.length + match.length)
        elif match.length:
            found.append(match)
    return found


def _between(old: Ids, new: Ids, left: Match, right: Match, grams: tuple[int, ...]) -> Iterator[Match]:
    """Matches after `left` and before `right`."""
    o, n, o_end, n_end = left.old + left.length, left.new + left.length, right.old, right.new
    prefix = _agreeing(old[o:o_end], new[n:n_end])
    yield Match(o, n, prefix)
    o, n = o + prefix, n + prefix
    suffix = _agreeing(old[o:o_end][::-1], new[n:n_end][::-1])
    o_end, n_end = o_end - suffix, n_end - suffix
    if o < o_end and n < n_end:
        if max(o_end - o, n_end - n) <= SHORT:
            yield from _token_by_token(old, new, Match(o, n, 0), Match(o_end, n_end, 0))
        elif grams:
            last = Match(o, n, 0)
            for anchor in _anchors(old[o:o_end], new[n:n_end], grams[0]):
                # two anchors may overlap on one side; the first one keeps the tokens
                taken = max(last.old + last.length - (o + anchor.old), last.new + last.length - (n + anchor.new), 0)
                if taken < anchor.length:
                    match = Match(o + anchor.old + taken, n + anchor.new + taken, anchor.length - taken)
                    yield from _between(old, new, last, match, grams[1:])
                    yield match
                    last = match
            yield from _between(old, new, last, Match(o_end, n_end, 0), grams[1:])
    yield Match(o_end, n_end, suffix)


def _agreeing(a: Ids, b: Ids) -> int:
    """The length of the common prefix."""
    length = min(len(a), len(b))
    same = a[:length] == b[:length]
    return length if same.all() else int(same.argmin())


def _token_by_token(old: Ids, new: Ids, left: Match, right: Match) -> Iterator[Match]:
    a, b = old[left.old : right.old].tolist(), new[left.new : right.new].tolist()
    for i, j, length in difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks():
        if length >= CHANCE:
            yield Match(left.old + i, left.new + j, length)


def _anchors(a: Ids, b: Ids, gram: int) -> list[Match]:
    """Runs of tokens that occur once in `a` and once in `b`, as far as they are in the same order."""
    if min(len(a), len(b)) < gram:
        return []
    (hash_a, at_a), (hash_b, at_b) = _once(a, gram), _once(b, gram)
    _, in_a, in_b = np.intersect1d(hash_a, hash_b, assume_unique=True, return_indices=True)
    i, j = at_a[in_a], at_b[in_b]
    run = np.arange(gram)
    real = (a[i[:, None] + run] == b[j[:, None] + run]).all(1)  # two runs may share a hash
    i, j = i[real], j[real]
    order = j.argsort()
    i, j = i[order], j[order]
    if not (i[1:] > i[:-1]).all():
        i, j = np.array(_rising(list(zip(i.tolist(), j.tolist(), strict=True)))).T
    if not len(i):
        return []
    # runs that overlap or touch, equally far apart on both sides, are one
    apart = (np.diff(i - j) != 0) | (np.diff(i) > gram)
    first, last = np.concatenate([[True], apart]), np.concatenate([apart, [True]])
    return list(map(Match, i[first].tolist(), j[first].tolist(), (i[last] - i[first] + gram).tolist()))


def _once(ids: Ids, gram: int) -> tuple[Ids, NDArray[np.intp]]:
    """The hashes, sorted, of the runs that occur once, and where they begin."""
    hashed = np.zeros(len(ids) - gram + 1, np.int64)
    for k in range(gram):
        hashed = hashed * _BASE + ids[k : k + len(hashed)]
    place = hashed.argsort()
    hashes = hashed[place]
    differs = np.concatenate([[True], hashes[1:] != hashes[:-1], [True]])
    alone = differs[1:] & differs[:-1]
    return hashes[alone], place[alone]


def _rising(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest part of `pairs`, whose second numbers rise, in which the first ones rise as well."""
    ends: list[int] = []  # the smallest first number that a rising part of each length ends in ...
    at: list[int] = []  # ... and which pair has it
    before: list[int] = []
    for index, (first, _) in enumerate(pairs):
        length = bisect_left(ends, first)
        before.append(at[length - 1] if length else -1)
        ends[length : length + 1], at[length : length + 1] = [first], [index]
    index, best = at[-1] if at else -1, []
    while index >= 0:
        best.append(pairs[index])
        index = before[index]
    return best[::-1]
