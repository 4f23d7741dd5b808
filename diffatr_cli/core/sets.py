"""Sets that pairs connect."""

from __future__ import annotations

from collections.abc import Iterable


def connected_sets(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The numbers 0..count - 1 in sets, of which any two members are joined by a chain of pairs; all in ascending order."""
    parents = list(range(count))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parents[high] = low
    sets: dict[int, list[int]] = {}
    for number in range(count):
        sets.setdefault(root(number), []).append(number)
    return list(sets.values())
