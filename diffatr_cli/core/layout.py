"""A map of vectors on a plane: what is alike lies together.

It minimises the cross entropy between two graphs of neighbours, that of the vectors and that of the plane, with a few random
pairs drawn beside each edge (McInnes et al. 2018, "UMAP: Uniform Manifold Approximation and Projection"). It begins with the two
first principal axes, so that the whole keeps its order too, and every random number comes from the seed.

N vectors, D their size, K neighbours, E edges.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NEIGHBOURS = 15
"""K: how many neighbours of each vector count as near."""

_EPOCHS = 400
_BESIDE = 5  # random pairs beside each edge
_A, _B = 1.577, 0.8951  # of 1 / (1 + A d^(2B)), which fits a plane whose points lie 0.1 apart at least
_BLOCK = 1024  # rows of cosines in memory at a time


def lay_out(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """Places on a plane for unit vectors, (N, D) -> (N, 2) float32, from -1 to 1 on the longer axis and around 0.

    The same vectors and seed give the same places on the same machine.
    """
    start = principal_axes(vectors)
    if len(vectors) <= 3:  # fewer have no neighbours to choose among
        return _scaled(start)
    near, cosine = nearest(vectors, min(NEIGHBOURS, len(vectors) - 1))
    heads, tails, weights = _graph(near, np.maximum(0, 1 - cosine))
    rng = np.random.default_rng(seed)
    places = _scaled(start).astype(np.float64) * 10 + rng.normal(0, 1e-3, start.shape)  # equal vectors do not stay on one point
    kept = weights >= weights.max() / _EPOCHS  # the others would not be looked at once
    _compiled()(places, heads[kept], tails[kept], weights[kept], _EPOCHS, int(rng.integers(1, 2**62)))
    return _scaled(places)


def principal_axes(vectors: np.ndarray) -> np.ndarray:
    """The first two principal components of vectors, (N, D) -> (N, 2) float64; an axis points to where its largest weight is."""
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64) if len(vectors) else np.zeros((0, 2))
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    found = centred @ axes
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))


def nearest(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest others of each unit vector, nearest first, of equal ones the first: (N, K) and their cosines."""
    near, cosines = [], []
    for first in range(0, len(vectors), _BLOCK):
        block = vectors[first : first + _BLOCK] @ vectors.T
        rows = np.arange(len(block))
        block[rows, first + rows] = -np.inf
        some = np.sort(np.argpartition(-block, count - 1, axis=1)[:, :count], axis=1)
        values = np.take_along_axis(block, some, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        near.append(np.take_along_axis(some, order, 1))
        cosines.append(np.take_along_axis(values, order, 1))
    return np.concatenate(near), np.concatenate(cosines)


def _graph(near: np.ndarray, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The edges (E,), (E,) of neighbours and how much each counts, 0 to 1, in both directions; (N, K) each in.

    Distances count from that to the nearest, in a unit of each vector's own in which its neighbours weigh log2(K) together; an
    edge that only one of the two has counts by that one.
    """
    beyond = distance - distance[:, :1]
    low, high = np.full(len(near), 1e-6), np.full(len(near), 1e3)
    wanted = max(np.log2(near.shape[1]), 1.0)
    for _ in range(64):
        middle = np.sqrt(low * high)
        too_much = np.exp(-beyond / middle[:, None]).sum(1) > wanted
        low, high = np.where(too_much, low, middle), np.where(too_much, middle, high)
    weight = np.exp(-beyond / np.sqrt(low * high)[:, None]).reshape(-1)
    count = len(near)
    one, other = np.repeat(np.arange(count), near.shape[1]), near.reshape(-1)
    pairs, place = np.unique(np.concatenate([one * count + other, other * count + one]), return_inverse=True)
    forth, back = np.zeros(len(pairs)), np.zeros(len(pairs))
    forth[place[: len(weight)]] = weight
    back[place[len(weight) :]] = weight
    return pairs // count, pairs % count, forth + back - forth * back


def _scaled(places: np.ndarray) -> np.ndarray:
    """Places around 0, the farthest 1 away on its axis."""
    if not len(places):
        return np.zeros((0, 2), np.float32)
    centred = places - (places.max(0) + places.min(0)) / 2
    return np.asarray(centred / max(float(np.abs(centred).max()), 1e-12), np.float32)


def _descend(places: Any, heads: Any, tails: Any, weights: Any, epochs: int, seed: int) -> None:
    """Stochastic descent from `places`, in place: an edge is looked at as often as it counts, and after it some random pairs."""
    state = np.uint64(seed)
    count = len(places)
    every = weights.max() / weights
    due = every.copy()
    for epoch in range(epochs):
        rate = 1.0 - epoch / epochs
        for edge in range(len(heads)):
            if due[edge] > epoch:
                continue
            due[edge] += every[edge]
            i, j = heads[edge], tails[edge]
            for pair in range(_BESIDE + 1):
                if pair:
                    state ^= state << np.uint64(13)
                    state ^= state >> np.uint64(7)
                    state ^= state << np.uint64(17)
                    j = np.int64(state % np.uint64(count))
                    if j == i:
                        continue
                x, y = places[i, 0] - places[j, 0], places[i, 1] - places[j, 1]
                square = x * x + y * y
                if pair:
                    pull = 2 * _B / ((0.001 + square) * (1 + _A * square**_B))
                elif square > 0:
                    pull = -2 * _A * _B * square ** (_B - 1) / (1 + _A * square**_B)
                else:
                    continue
                x, y = min(4.0, max(-4.0, pull * x)) * rate, min(4.0, max(-4.0, pull * y)) * rate
                places[i, 0] += x
                places[i, 1] += y
                if not pair:
                    places[j, 0] -= x
                    places[j, 1] -= y


_made: list[Any] = []


def _compiled() -> Any:
    if not _made:
        from .compiled import compiled  # numba, which takes a second, and only whoever opens the map needs it

        _made.append(compiled(_descend))
    return _made[0]
