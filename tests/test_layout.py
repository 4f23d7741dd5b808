"""The map of vectors on a plane."""

import numpy as np
import pytest

from diffatr_cli.core.layout import lay_out, nearest, principal_axes


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def clustered():
    """Sixty clusters in 64 dimensions, each a sheet of three, and of which cluster each vector is."""
    rng = np.random.default_rng(3)
    of = rng.integers(0, 60, 1200)
    centres, sheets = rng.normal(size=(60, 64)), rng.normal(size=(60, 3, 64)) / 4
    return unit(centres[of] + np.einsum("nk,nkd->nd", rng.normal(size=(1200, 3)), sheets[of])), of


def near_by_hand(points, count):
    distance = ((points[:, None].astype(np.float64) - points[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1, kind="stable")[:, :count]


def kept(vectors, places):
    """The share of the 10 nearest neighbours that are among the 30 nearest on the map."""
    pairs = zip(near_by_hand(vectors, 10), near_by_hand(places, 30), strict=True)
    return np.mean([len(set(near) & set(there)) / 10 for near, there in pairs])


def test_neighbours_stay_neighbours_far_more_than_on_two_axes(clustered):
    vectors, of = clustered
    places = lay_out(vectors)
    assert kept(vectors, places) > 0.9
    assert kept(vectors, places) > kept(vectors, principal_axes(vectors)) + 0.2
    assert np.mean(of[near_by_hand(places, 5)] == of[:, None]) > 0.95
    from sklearn.manifold import trustworthiness

    ours, axes = (trustworthiness(vectors, each, n_neighbors=10) for each in (places, principal_axes(vectors)))
    assert ours > max(0.95, axes + 0.05)


def test_the_same_seed_gives_the_same_map(clustered):
    vectors = clustered[0][:200]
    first = lay_out(vectors)
    assert np.array_equal(first, lay_out(vectors))
    assert not np.array_equal(first, lay_out(vectors, seed=1))
    assert first.dtype == np.float32
    assert np.abs(first).max() == pytest.approx(1)
    assert first.max(0) == pytest.approx(-first.min(0), abs=1e-6)


@pytest.mark.parametrize("count", range(7))
def test_a_few_vectors_or_none(clustered, count):
    places = lay_out(clustered[0][:count])
    assert places.shape == (count, 2)
    assert np.isfinite(places).all()
    assert np.abs(places).max(initial=0) <= 1


@pytest.mark.parametrize("dim", [1, 2])
def test_vectors_of_few_dimensions(dim):
    places = lay_out(unit(np.random.default_rng(0).normal(size=(12, dim))))
    assert places.shape == (12, 2)
    assert np.isfinite(places).all()


def test_equal_vectors_lie_together_and_not_on_one_point(clustered):
    vectors = np.concatenate([np.repeat(clustered[0][:1], 20, axis=0), clustered[0][100:160]])
    places = lay_out(vectors)
    assert np.isfinite(places).all()
    assert len(np.unique(places[:20], axis=0)) == 20
    around = np.linalg.norm(places[:20] - places[:20].mean(0), axis=1).mean()
    assert around < 0.5 * np.linalg.norm(places[20:] - places[:20].mean(0), axis=1).mean()


def test_axes_and_neighbours_are_those_of_other_libraries(clustered):
    from sklearn.decomposition import PCA

    vectors = clustered[0]
    assert np.abs(principal_axes(vectors)) == pytest.approx(np.abs(PCA(2, svd_solver="full").fit_transform(vectors)), abs=1e-4)
    near, cosine = nearest(vectors, 10)
    assert np.mean(near == near_by_hand(vectors, 10)) > 0.999  # up to what rounding turns round
    assert cosine == pytest.approx(np.take_along_axis(vectors @ vectors.T, near, 1), abs=1e-5)
