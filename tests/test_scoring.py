import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from diffatr_cli.core.denoiser import AttentionDenoiser
from diffatr_cli.core.factored import FactoredDenoiser
from diffatr_cli.core.noise import query_noise
from diffatr_cli.core.sampler import ddim_sample
from diffatr_cli.core.sampling import Sampling
from diffatr_cli.core.schedule import NoiseSchedule
from diffatr_cli.core.scoring import diffusion_score_blocks, diffusion_scores, fuse
from diffatr_cli.recipe_schema import Recipe

SCHEDULE = NoiseSchedule.cosine(10)


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture(scope="module")
def denoiser():
    made = AttentionDenoiser(16, 24, generator=torch.Generator().manual_seed(0)).requires_grad_(False)
    made.decoder[2].weight *= 10
    return made


@pytest.fixture(scope="module")
def prepared(denoiser):
    return FactoredDenoiser(denoiser).prepare(CANDIDATES)


QUERIES, CANDIDATES = unit(7, 16), unit(12, 16, seed=1)


def test_noise_follows_seed_id_draw_and_step_alone():
    noise = query_noise(3, [5, -1, 2**70 + 5], 1000)
    assert torch.equal(noise(0), noise(0))
    assert torch.equal(query_noise(3, [-1, 5], 1000)(0), noise(0)[[1, 0]])
    assert torch.equal(query_noise(3, [5], 10)(0), noise(0)[:1, :10])
    assert torch.equal(noise(0)[2], noise(0)[0])  # the same lowest 64 bits
    different = [noise(0)[0], noise(0)[1], noise(1)[0], query_noise(4, [5], 1000)(0)[0], query_noise(3, [5], 1000, draw=1)(0)[0]]
    correlation = np.corrcoef(torch.stack(different))
    assert np.abs(correlation - np.eye(5)).max() < 0.15
    values = query_noise(0, range(100), 1000)(0)
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("x0", ["softmax", "clip"])
def test_scores_are_the_plain_sampler_query_by_query(denoiser, prepared, eta, x0):
    ids = [4, 9, 2, 100, 7, 8, 0]
    got = diffusion_scores(QUERIES, prepared, SCHEDULE, Sampling(6, eta, x0, seed=5), query_ids=ids)
    for i, row in enumerate(got):
        plain = ddim_sample(denoiser, QUERIES[i : i + 1], CANDIDATES, SCHEDULE, 6, eta, query_noise(5, [ids[i]], 12), x0=x0)
        torch.testing.assert_close(row, plain[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shortlist", [None, 4])
def test_nothing_depends_on_the_block(prepared, shortlist):
    done, sampling = [], Sampling(eta=0.5, shortlist=shortlist, draws=2)
    whole = diffusion_scores(QUERIES, prepared, SCHEDULE, sampling)
    for chunk in (1, 3, 7, 50):
        got = diffusion_scores(QUERIES, prepared, SCHEDULE, sampling, chunk=chunk, progress=lambda *at: done.append(at))
        torch.testing.assert_close(got, whole, rtol=0, atol=1e-6)
    assert done[7:10] == [(3, 7), (6, 7), (7, 7)]
    order = [6, 0, 3, 1, 5, 4, 2]
    moved = diffusion_scores(QUERIES[order], prepared, SCHEDULE, sampling, query_ids=order)
    torch.testing.assert_close(moved, whole[order], rtol=0, atol=1e-6)
    blocks = list(diffusion_score_blocks(QUERIES, prepared, SCHEDULE, sampling, chunk=3))
    assert [rows for rows, _ in blocks] == [slice(0, 3), slice(3, 6), slice(6, 7)]


def test_a_shortlist_is_a_corpus_of_the_nearest(denoiser, prepared):
    got = diffusion_scores(QUERIES, prepared, SCHEDULE, Sampling(seed=1, shortlist=4))
    noise = query_noise(1, range(7), 12)(0)
    for i, row in enumerate(got):
        nearest = sorted(np.argsort(-(QUERIES[i] @ CANDIDATES.T).numpy())[:4])
        plain = ddim_sample(denoiser, QUERIES[i : i + 1], CANDIDATES[nearest], SCHEDULE, noise=noise[i : i + 1, nearest])
        torch.testing.assert_close(row[nearest], plain[0], rtol=0, atol=1e-5)
        assert row.count_nonzero() == 4
    everything = diffusion_scores(QUERIES, prepared, SCHEDULE, Sampling(seed=1))
    assert torch.equal(diffusion_scores(QUERIES, prepared, SCHEDULE, Sampling(seed=1, shortlist=12)), everything)


def test_draws_are_averaged(denoiser, prepared):
    got = diffusion_scores(QUERIES, prepared, SCHEDULE, Sampling(draws=3))
    each = [ddim_sample(denoiser, QUERIES, CANDIDATES, SCHEDULE, noise=query_noise(0, range(7), 12, draw)) for draw in range(3)]
    assert not torch.allclose(each[0], each[1])
    torch.testing.assert_close(got, torch.stack(each).mean(0), rtol=0, atol=1e-5)


def test_ends(prepared):
    assert diffusion_scores(QUERIES[:0], prepared, SCHEDULE, Sampling()).shape == (0, 12)
    assert fuse(torch.tensor([[0.5]]), torch.tensor([[0.25]]), 2.0).tolist() == [[1.0]]
    assert fuse(torch.tensor([[0.5]]), torch.tensor([[0.25]]), None).tolist() == [[0.25]]
    with pytest.raises(ValueError, match="query_ids"):
        diffusion_scores(QUERIES, prepared, SCHEDULE, Sampling(), query_ids=[1])
    with pytest.raises(ValueError, match="11"):
        diffusion_scores(QUERIES, prepared, SCHEDULE, Sampling(steps=11))


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"shortlist": 0}, {"steps": 0}, {"eta": 1.5}, {"eta": -0.1}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_settings_come_from_the_recipe_and_overrides_from_the_caller():
    recipe = Recipe.model_validate({"evaluation": {"steps": 7, "draws": 3}, "diffusion": {"x0": "clip"}})
    own = Sampling.of(recipe)
    assert own == Sampling(steps=7, x0="clip", draws=3)
    assert Sampling.of(recipe, steps=None, seed=5, draws=None) == own.but(seed=5) == Sampling(7, 0.0, "clip", 3, None, 5)
    assert own.for_folder().shortlist == 100
    assert own.but(shortlist=20).for_folder().shortlist == 20
    assert own.but(shortlist=20).for_folder(shortlist=4, steps=None) == own.but(shortlist=4)
    with pytest.raises(TypeError):
        Sampling.of(recipe, shortlists=4)
