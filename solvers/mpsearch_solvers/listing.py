"""Complete lists of the partial choices of half the groups, by their excess over the dual."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch_solvers.core import Swaps
from mpsearch_solvers.problem import Floats, Ints

_BINS = 512
_MERGE_FROM = 2_000
_LONGEST = 2_000_000


@dataclass(frozen=True, eq=False)
class Half:
    """All partial choices of half the groups with excess below a threshold.

    Attributes:
        excess: Summed excess, shape (items,).
        spent: Summed change of usage, shape (rows, items).
        code: Which swaps were made, packed, shape (words, items).
    """

    excess: Floats
    spent: Floats
    code: NDArray[np.uint64]


def halve(swaps: Swaps) -> tuple[list[Ints], list[Ints]]:
    """Split the swaps' groups into two lists of alike weight.

    Args:
        swaps: All swaps.

    Returns:
        Two lists of groups, each group given as the positions of its swaps; the groups whose
        cheapest swap is dearest come first, since few partial choices survive them.
    """
    if not len(swaps.group):
        return [], []
    order = np.lexsort((swaps.excess, swaps.group))
    edges = np.flatnonzero(np.diff(swaps.group[order])) + 1
    members = np.split(order, edges)
    members.sort(key=lambda positions: -float(swaps.excess[positions[0]]))
    return members[0::2], members[1::2]


def list_sizes(excess: list[Floats], most: float) -> tuple[Floats, Floats]:
    """Count the partial choices of one half by their excess.

    Args:
        excess: Excess of every group's swaps.
        most: The largest threshold of interest.

    Returns:
        Thresholds, ascending up to `most`, and at least how many partial choices stay below
        each (excesses are rounded down to the grid, so the true count is smaller).
    """
    counts = np.zeros(_BINS)
    counts[0] = 1.0
    for values in excess:
        steps = (values * (_BINS / most)).astype(np.intp)
        grown = counts.copy()
        for step in steps[steps < _BINS].tolist():
            grown[step:] += counts[: _BINS - step]
        counts = grown
    return most * np.arange(1, _BINS + 1) / _BINS, np.cumsum(counts)


def list_half(
    swaps: Swaps,
    groups: list[Ints],
    threshold: float,
    is_over: Callable[[], bool],
    *,
    merges_equal: bool = True,
) -> Half | None:
    """List all partial choices of some groups with excess below a threshold.

    Of partial choices that spend the same to the last bit only the one of least excess is kept:
    with few kinds of groups that is what keeps the lists short.

    Args:
        swaps: All swaps.
        groups: The half's groups, as :func:`halve` gives them.
        threshold: Excess that a partial choice stays below.
        is_over: Whether to give up.
        merges_equal: Whether to drop all but the best of equal spending.

    Returns:
        The list, or None if time ran out or it grew too long.
    """
    bits = [max(1, len(members).bit_length()) for members in groups]
    words = _words(bits)
    excess = np.zeros(1)
    spent = np.zeros((len(swaps.spent), 1))
    code = np.zeros((words, 1), dtype=np.uint64)
    merged_at = _MERGE_FROM
    for members, (word, shift) in zip(groups, _places(bits), strict=True):
        if is_over():
            return None
        parts = [(excess, spent, code)]
        for choice, swap in enumerate(members.tolist(), start=1):
            room = excess < threshold - swaps.excess[swap]
            marked = code[:, room]
            marked[word] |= np.uint64(choice << shift)
            parts.append(
                (
                    excess[room] + swaps.excess[swap],
                    spent[:, room] + swaps.spent[:, swap, None],
                    marked,
                )
            )
        excess = np.concatenate([part[0] for part in parts])
        spent = np.concatenate([part[1] for part in parts], axis=1)
        code = np.concatenate([part[2] for part in parts], axis=1)
        if merges_equal and len(excess) > merged_at:
            kept = _best_of_equals(excess, spent)
            # Where hardly anything was equal, looking again soon would be a waste.
            patience = 2 if len(kept) < 0.9 * len(excess) else 64
            excess, spent, code = excess[kept], spent[:, kept], code[:, kept]
            merged_at = patience * len(excess)
        if len(excess) > _LONGEST:
            return None
    return Half(excess, spent, code)


def _best_of_equals(excess: Floats, spent: Floats) -> Ints:
    """Return the items that no item of exactly equal spending beats, in their order."""
    order = np.lexsort((excess, *spent))
    ordered = spent[:, order]
    is_first = np.ones(len(order), dtype=np.bool_)
    is_first[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(axis=0)
    kept: Ints = np.sort(order[is_first])
    return kept


def list_pairs(swaps: Swaps, groups: list[Ints]) -> Half:
    """List no swap, every single swap, and every pair of swaps of different groups.

    Args:
        swaps: All swaps.
        groups: The half's groups, as :func:`halve` gives them.

    Returns:
        The list, whatever its excesses.
    """
    bits = [max(1, len(members).bit_length()) for members in groups]
    order = np.concatenate(groups) if groups else np.zeros(0, dtype=np.intp)
    marks = np.zeros((_words(bits), len(order)), dtype=np.uint64)
    owner = np.zeros(len(order), dtype=np.intp)
    at = 0
    for place, (members, (word, shift)) in enumerate(zip(groups, _places(bits), strict=True)):
        for choice in range(1, len(members) + 1):
            marks[word, at] = np.uint64(choice << shift)
            owner[at] = place
            at += 1
    first, second = np.triu_indices(len(order), 1)
    apart = owner[first] != owner[second]
    first, second = first[apart], second[apart]
    excess, spent = swaps.excess[order], swaps.spent[:, order]
    none = np.zeros(1)
    return Half(
        np.concatenate([none, excess, excess[first] + excess[second]]),
        np.concatenate(
            [np.zeros((len(spent), 1)), spent, spent[:, first] + spent[:, second]], axis=1
        ),
        np.concatenate(
            [np.zeros((len(marks), 1), np.uint64), marks, marks[:, first] | marks[:, second]],
            axis=1,
        ),
    )


def _words(bits: list[int]) -> int:
    places = list(_places(bits))
    return places[-1][0] + 1 if places else 1


def _places(bits: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the word and shift of every group's field."""
    word, shift = 0, 0
    for width in bits:
        if shift + width > 64:
            word, shift = word + 1, 0
        yield word, shift
        shift += width


def decode(swaps: Swaps, groups: list[Ints], code: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Yield the (group, column) swaps of one packed partial choice."""
    bits = [max(1, len(members).bit_length()) for members in groups]
    for members, width, (word, shift) in zip(groups, bits, _places(bits), strict=True):
        choice = (int(code[word]) >> shift) & ((1 << width) - 1)
        if choice:
            swap = int(members[choice - 1])
            yield int(swaps.group[swap]), int(swaps.column[swap])
