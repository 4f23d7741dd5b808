"""Phase two with candidates as the query sees them: batches, caches, training, checkpoint and evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import typed
from conftest import Workshop
from killed_runs import assert_killed_run_resumes_to_the_same
from safetensors.torch import load_file
from tiny_models import TEXT_MODELS
from torch.nn import functional

from diffatr_cli import processes
from diffatr_cli.api import load_model
from diffatr_cli.core import sight
from diffatr_cli.core.audio_encoder import SmallCnn, pool_frames
from diffatr_cli.core.calibration import of_known, score_features
from diffatr_cli.core.metrics import retrieval_metrics
from diffatr_cli.core.noise import query_noise
from diffatr_cli.core.query_conditioned import Padded, QueryConditioner
from diffatr_cli.core.ragged import Ragged
from diffatr_cli.core.sampler import ddim_sample
from diffatr_cli.core.sampling import Sampling
from diffatr_cli.core.schedule import NoiseSchedule
from diffatr_cli.core.scoring import Reranker, diffusion_scores
from diffatr_cli.core.sight import States
from diffatr_cli.core.text import normalise_caption
from diffatr_cli.data.logmels import LogMels
from diffatr_cli.data.manifest import load_dataset, read_piece
from diffatr_cli.encoders import check_states
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.evaluation import ranking
from diffatr_cli.evaluation import states as states_module
from diffatr_cli.evaluation import trajectory as trajectory_module
from diffatr_cli.evaluation.evaluate import evaluate
from diffatr_cli.evaluation.ranking import rank_queries
from diffatr_cli.evaluation.states import cached_sequences
from diffatr_cli.evaluation.trajectory import trajectory
from diffatr_cli.model import Retriever, load_encoders, load_retriever
from diffatr_cli.phase_two import build_denoiser
from diffatr_cli.recipe import load_recipe
from diffatr_cli.recipe_schema import DiffusionSection, Recipe
from diffatr_cli.training import denoisers
from diffatr_cli.training import fit_calibration as fit_calibration_module
from diffatr_cli.training.calibrate import calibrate
from diffatr_cli.training.candidates import CandidateBatches, nearest_others
from diffatr_cli.training.clips import LogMelCrops
from diffatr_cli.training.denoisers import DenoiserPair
from diffatr_cli.training.pretrain import pretrain
from diffatr_cli.training.streams import torch_stream
from diffatr_cli.training.train_diffusion import _training_views, learning_rate, train_diffusion
from diffatr_cli.training.views import TrainingViews, augmented_frames, augmented_views
from diffatr_cli.types import DIRECTIONS, Direction

FRAMES = (
    "diffusion.conditioning=frames",
    "diffusion.candidates=12",
    "diffusion.negatives=shared_nearest",
    "diffusion.output=add_logit",
    "diffusion.warmup=3",
    "evaluation.shortlist=5",
    "evaluation.fusion_weights=[1.0]",  # so that x0_hat counts
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(randn(*shape, seed=seed), dim=-1)


def ragged(lengths: list[int], features: int, seed: int) -> Ragged:
    return Ragged.of([randn(length, features, seed=100 * seed + i) for i, length in enumerate(lengths)], features)


def scattered(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Off its start at zero: every term counts."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.add_(0.3 * randn(*parameter.shape, seed=seed + i))
    return module.eval()


# Batches


def views(clips: int = 30, per_clip: int = 2, count: int = 3) -> TrainingViews:
    """Tokens and frames that name their caption, and their clip and view."""
    clip_index = torch.arange(clips).repeat_interleave(per_clip)
    tokens = Ragged.of([torch.full((1 + i % 3, 2), float(i)) for i in range(clips * per_clip)], 2)
    frames = Ragged.of([torch.full((1 + i % 4, 3), float(i)) for i in range(count * clips)], 3)
    audio, text = unit(count, clips, 8), unit(clips * per_clip, 8, seed=1)
    return TrainingViews(audio, text, clip_index, torch.arange(clips), States(tokens, frames))


def numbers(states: Padded | None) -> torch.Tensor:
    """Which sequences these are, by what `views` wrote into them."""
    assert states is not None
    assert states.mask[:, 0].all()
    return states.states[:, 0, 0].long()


def test_states_are_those_of_the_vectors_beside_them() -> None:
    train = views()
    section = DiffusionSection(conditioning="frames", batch_size=6, candidates=15, negatives="shared_nearest")
    batches = CandidateBatches(train, section, seed=0)
    for inside in range(len(batches)):
        for direction, query, candidates, x_0, of_query, of_candidates in batches(0, inside):
            captions, of_captions, audio, of_audio = query, of_query, candidates, of_candidates
            if direction == "a2t":
                captions, of_captions, audio, of_audio = candidates, of_candidates, query, of_query
            texts, clips = numbers(of_captions), numbers(of_audio)
            assert torch.equal(train.text[texts], captions)
            assert torch.equal(train.audio[clips // 30, clips % 30], audio)
            own = train.clip_index[texts][:, None] == (clips % 30)[None]
            truth = own if direction == "t2a" else own.T
            assert torch.equal(x_0 > 0, truth)
            torch.testing.assert_close(x_0.sum(1), torch.ones(6))


def test_shared_candidates_are_the_batch_and_some_of_each_querys_nearest() -> None:
    train = views()
    section = DiffusionSection(batch_size=6, candidates=18, negatives="shared_nearest")
    seen, alone = 0, CandidateBatches(train, DiffusionSection(batch_size=6), seed=0)
    for task, plain in zip(CandidateBatches(train, section, seed=0)(0, 1), alone(0, 1), strict=True):
        of_query, of_true = numbers(task.of_query), numbers(task.of_candidates)
        own, more = of_true.split([6, len(of_true) - 6])
        assert torch.equal(own, numbers(plain.of_candidates))
        if task.direction == "t2a":
            own, more = own % 30, more % 30  # the clips, whatever the view
        assert len(more) == len(set(more.tolist()) - set(own.tolist()))
        audio = functional.normalize(train.audio.mean(0), dim=1)
        group = train.positive_group
        sides = (train.text, audio, group[train.clip_index], group)
        if task.direction == "a2t":
            sides = (audio, train.text, group, group[train.clip_index])
        near = nearest_others(*sides, 24)[of_query if task.direction == "t2a" else of_query % 30]
        assert set(more.tolist()) <= set(near.flatten().tolist())
        seen += len(more)
    assert 12 <= seen <= 24  # two a query, less those drawn twice


@pytest.mark.parametrize(
    "fields", [{"negatives": "nearest", "candidates": 5}, {"conditioning": "tokens"}], ids=["own candidates", "unknown"]
)
def test_fields_that_do_not_go_together(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"shared_nearest or bank|'none' or 'frames'"):
        DiffusionSection(**{"conditioning": "frames"} | fields)  # type: ignore[arg-type]


def test_generation_alone_has_no_frames(workshop: Workshop) -> None:
    with pytest.raises(UsageError, match=r"diffusion\.conditioning: .*model\.strategy=gen-dis"):
        workshop.recipe("diffusion.conditioning=frames", "model.strategy=gen")


def test_the_rate_rises_then_falls_to_nothing() -> None:
    section = DiffusionSection(lr=1.0, warmup=10)
    rates = [learning_rate(section, step, 100) for step in range(101)]
    plain = [learning_rate(DiffusionSection(lr=1.0), step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 * rate for step, rate in enumerate(plain[:10])])
    assert rates[10:] == plain[10:]
    assert rates[100] == 0


@pytest.mark.parametrize("objective", ["diffusion", "discriminative"])
def test_the_shares_of_several_processes_are_the_whole_loss(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    recipe = workshop.recipe(*FRAMES, f"diffusion.objective={objective}", "model.dim=8", "diffusion.batch_size=6")
    pair = DenoiserPair(recipe.model, recipe.diffusion, (3, 2))
    scattered(pair, 1)
    batch = list(CandidateBatches(views(), recipe.diffusion, seed=0)(0, 0))
    whole = pair.loss(batch, torch_stream(0, "diffusion", 0))
    others = [task._replace(of_query=Padded(task.of_query.states + 1, task.of_query.mask)) for task in batch if task.of_query]
    assert not torch.allclose(whole, pair.loss(others, torch_stream(0, "diffusion", 0)))
    monkeypatch.setattr(denoisers, "count", lambda: 2)
    parts = []
    for part in (slice(0, 2), slice(2, 6)):
        monkeypatch.setattr(denoisers, "share", lambda number, part=part: part)
        parts.append(pair.loss(batch, torch_stream(0, "diffusion", 0)))
    torch.testing.assert_close(sum(parts) / 2, whole)


# Scores


def reranker(scale: float = 1.0) -> tuple[Reranker, States, dict[Direction, tuple[torch.Tensor, torch.Tensor]]]:
    """Of 5 clips and 7 captions, one without frames and one without tokens."""
    recipe = load_recipe("demo", ["model.dim=8", "diffusion.hidden=6", "diffusion.steps=6"])
    made: dict[Direction, torch.nn.Module] = {d: QueryConditioner(4, 3, 8, 5) for d in DIRECTIONS}
    if scale:
        made = {direction: scattered(module, 1) for direction, module in made.items()}
    denoiser = build_denoiser(recipe.model, recipe.diffusion, torch.Generator().manual_seed(0)).eval()
    both = Reranker(dict.fromkeys(DIRECTIONS, denoiser), NoiseSchedule.cosine(6), Sampling(), {}, conditioners=made)  # type: ignore[arg-type]
    states = States(ragged([2, 1, 3, 0, 1, 2, 4], 4, 1), ragged([3, 1, 0, 2, 5], 3, 2))
    text, audio = unit(7, 8, seed=3), unit(5, 8, seed=4)
    return both, states, {"t2a": (text, audio), "a2t": (audio, text)}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shortlist", [None, 3, 100])
@pytest.mark.parametrize(("chunk", "room"), [(None, 2**26), (1, 2**26), (1, 0), (4, 0)])
def test_scores_are_those_of_all_pairs_seen_at_once(
    direction: Direction, shortlist: int | None, chunk: int | None, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sight, "KEPT_ENTRIES", room)
    monkeypatch.setattr(sight, "PROJECTED_AT_ONCE", 2)
    both, states, vectors = reranker()
    queries, candidates = vectors[direction]
    of_query, of_candidates = states if direction == "t2a" else (states.frames, states.tokens)
    conditioner, denoiser = both.conditioners[direction], both.denoisers[direction]
    rows = np.array([2, 0, 4, 4])
    with torch.no_grad():
        projected = conditioner.project(direction, of_query.padded(rows), of_candidates.padded(np.arange(len(candidates))))
        seen, shift = conditioner.see(direction, *projected, candidates, denoiser.input_scale)
    sampling = Sampling(steps=3, shortlist=shortlist, seed=5)
    got = diffusion_scores(
        queries[rows],
        both.prepare(direction, candidates),
        both.schedule,
        sampling,
        query_ids=[7, 8, 9, 10],
        chunk=chunk,
        sight=both.sight(direction, states, rows),
    )
    n = len(candidates)
    listed = (queries[rows] @ candidates.T).topk(min(shortlist or n, n), 1).indices
    noise = query_noise(5, [7, 8, 9, 10], n)(0)
    expected = torch.zeros(4, n)
    for row, places in enumerate(listed):

        def logits(x: torch.Tensor, level: torch.Tensor, q: torch.Tensor, c: torch.Tensor, row: int = row) -> torch.Tensor:
            found: torch.Tensor = denoiser(x, level, q, c) + shift[row, places]  # noqa: B023
            return found

        own = ddim_sample(logits, queries[rows][row, None], seen[row, places], both.schedule, 3, noise=noise[row, None, places])
        expected[row, places] = own[0].detach()
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shared", [2, 100])
def test_several_processes_see_what_one_sees(shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them at a time, in blocks of queries; of few queries none has a share."""
    both, states, vectors = reranker()
    queries, candidates = vectors["t2a"]
    what = queries, both.prepare("t2a", candidates), both.schedule, Sampling(shortlist=3), [3, 1, 4, 1, 5, 9, 2]
    whole = torch.cat([scores for _, scores in ranking.score_blocks(*what, both.sight("t2a", states))])
    monkeypatch.setattr(ranking, "QUERIES_AT_ONCE", 4)
    for module in (ranking, processes):
        monkeypatch.setattr(module, "count", lambda: shared)
    half: list[slice] = [slice(0, 2), slice(2, None)]
    parts = []
    for own in half:
        monkeypatch.setattr(processes, "share", lambda number, own=own: own)
        monkeypatch.setattr(processes, "gathered", lambda rows: rows)
        parts.append([scores for _, scores in ranking.score_blocks(*what, both.sight("t2a", states))])
    blocks = [torch.cat(block) if shared == 2 else block[0] for block in zip(*parts, strict=True)]
    torch.testing.assert_close(torch.cat(blocks), whole)


def test_vectors_alone_are_refused() -> None:
    both, _, vectors = reranker()
    queries, candidates = vectors["t2a"]
    with pytest.raises(ValueError, match="pass what it sees"):
        rank_queries(queries, candidates, [np.array([0])] * 7, "t2a", both)
    with pytest.raises(ValueError, match="needs the states"):
        both.draws("t2a", queries[0], candidates, Sampling())


def test_untrained_it_is_the_plain_model() -> None:
    both, states, vectors = reranker(scale=0)
    plain = Reranker(both.denoisers, both.schedule, both.sampling, {})
    for direction, (queries, candidates) in vectors.items():
        sampling = Sampling(shortlist=3)
        of_plain = diffusion_scores(queries, plain.prepare(direction, candidates), both.schedule, sampling)
        prepared, sight = both.prepare(direction, candidates), both.sight(direction, states)
        torch.testing.assert_close(diffusion_scores(queries, prepared, both.schedule, sampling, sight=sight), of_plain)
        assert plain.sight(direction, None) is None
        with pytest.raises(ValueError, match="needs the states"):
            both.sight(direction, None)


# Caches


def test_sequences_are_made_once_and_again_where_they_are_others_or_damaged(tmp_path: Path) -> None:
    calls, path = [], tmp_path / "frames.f16"

    def made(seed: int = 0, source: str = "a") -> Ragged:
        def make() -> states_module.Sequences:
            calls.append(seed)
            yield np.array([2, 0]), [ragged([3], 4, seed).padded(np.array([0])).states[0].half(), torch.zeros(0, 4).half()]
            yield np.array([1]), [torch.ones(2, 4).half()]

        return cached_sequences(path, {"of": source}, 3, make)

    first = made()
    assert first.lengths.tolist() == [0, 2, 3]
    assert first.padded(np.array([1])).states.tolist() == [[[1.0] * 4] * 2]
    expected = first.padded(np.arange(3))
    assert torch.equal(made().padded(np.arange(3)).states, expected.states)
    assert calls == [0]
    assert isinstance(made().values, np.memmap)
    made(source="b")
    assert len(calls) == 2
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    assert torch.equal(made(source="b").padded(np.arange(3)).states, expected.states)
    for damage in (b"", b"{}", b"[1, 2]", b'{"source": {"of": "b"}, "starts": 1}'):
        path.with_suffix(".json").write_bytes(damage)
        assert torch.equal(made(source="b").padded(np.arange(3)).states, expected.states)
    assert len(calls) == 7


# Training


@pytest.fixture(scope="module")
def conditioned(workshop: Workshop, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seed folder whose phase two is conditioned."""
    run = tmp_path_factory.mktemp("conditioned") / "tiny" / "seed-0"
    shutil.copytree(trained / "pretrain", run / "pretrain")
    train_diffusion("tiny", workshop.recipe(*FRAMES), data=workshop.data, runs=run.parents[1], device="cpu")
    return run


def test_it_learns_and_is_loaded_as_it_was_kept(conditioned: Path) -> None:
    log = [json.loads(line) for line in (conditioned / "diffusion" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"]
    model = load_retriever(conditioned, "cpu")
    assert model.reranker is not None
    kept = load_file(conditioned / "diffusion" / "best.safetensors")
    for direction, conditioner in model.reranker.conditioners.items():
        assert all(torch.equal(kept[f"conditioner.{direction}.{k}"], v) for k, v in conditioner.state_dict().items())
        assert conditioner.outer.weight.abs().max() > 0
        assert conditioner.logit.weight.abs().max() > 0


def test_frames_under_augmentation_are_those_that_the_views_pool() -> None:
    """Two batches of a view, and more views: the same crops, stripes and perturbations, whatever the pooling's dropout takes."""
    torch.manual_seed(0)
    encoder = SmallCnn((8, 12), dropout=0.3, stripes=(10, 8), perturbed=True)
    lengths = np.array([64] * 38 + [30, 50])
    offsets = np.cumsum([0, *lengths])
    values = np.random.default_rng(0).integers(-12000, 4000, (offsets[-1], 64)).astype(np.int16)
    clips, device = LogMelCrops(LogMels(values, offsets), 48, 640), torch.device("cpu")
    pooled = augmented_views(encoder, clips, 2, 5, False, device)
    found: dict[int, torch.Tensor] = {}
    for places, frames in augmented_frames(encoder, clips, 2, 5, False, device):
        found.update(zip(places.tolist(), frames, strict=True))
    assert sorted(found) == list(range(80))
    for place, frames in found.items():
        clip = place % 40
        assert frames.dtype == torch.float16
        assert len(frames) == min(48, lengths[clip]) // encoder.reduction
        if lengths[clip] >= 48:  # shorter ones have silence behind them, which the views pool too
            vector = pooled[place // 40, clip]
            kept = vector != 0
            assert 0 < kept.sum() < 12 or not torch.allclose(vector, vector[0])
            torch.testing.assert_close(vector[kept] * 0.7, pool_frames(frames[None].float())[0][kept], atol=5e-3, rtol=5e-3)
    assert not torch.equal(found[0], found[40])


def test_a_view_of_frames_has_the_vectors_that_are_cached(workshop: Workshop, conditioned: Path) -> None:
    """Whether the vectors were there before or not: both come from the same seed."""
    recipe, device = workshop.recipe(*FRAMES), torch.device("cpu")
    first = states_module.encoders_of(conditioned)
    model, dataset = load_encoders(conditioned, "cpu"), load_dataset(workshop.data, "tones")
    plain = recipe.model_copy(update={"diffusion": DiffusionSection(views=2)})

    def made(*recipes: Recipe) -> TrainingViews:
        for path in first.folder.glob("*views*"):
            path.unlink()
        return [_training_views(first, each, dataset, model, device, lambda *_: None) for each in recipes][-1]

    one, other = made(recipe), made(plain, recipe)
    assert torch.equal(one.audio, other.audio)
    assert one.states is not None
    assert other.states is not None
    assert len(one.states.frames) == 2 * len(one.positive_group)
    assert np.array_equal(one.states.frames.values, other.states.frames.values)
    assert np.array_equal(one.states.tokens.values, other.states.tokens.values)
    assert made(plain).states is None


def test_a_killed_run_resumes_to_the_same_result(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    assert_killed_run_resumes_to_the_same(workshop, workshop.recipe(*FRAMES), trained, tmp_path)


def test_bf16_trains_to_nearly_the_same_loss(workshop: Workshop, conditioned: Path, tmp_path: Path) -> None:
    def losses(name: str, *overrides: str) -> float:
        shutil.copytree(conditioned / "pretrain", tmp_path / name / "seed-0" / "pretrain")
        recipe = workshop.recipe(*FRAMES, "diffusion.epochs=1", *overrides)
        folder = train_diffusion(name, recipe, data=workshop.data, runs=tmp_path, device="cpu").folder
        return float(json.loads((folder / "metrics.jsonl").read_text())["loss"])

    plain, rounded = losses("fp32"), losses("bf16", "diffusion.precision=bf16")
    assert plain != rounded
    assert rounded == pytest.approx(plain, rel=0.2)  # a few steps at a high rate


def test_figures_equal_those_by_hand(workshop: Workshop, conditioned: Path) -> None:
    """On another data set, from the sounds and the captions one by one, by the plain loop over each query's own shortlist."""
    result = evaluate("tones", "tones2", data=workshop.data, runs=conditioned.parents[1], device="cpu")
    assert (result.clips, result.captions, result.shortlist) == (12, 24, 5)
    model = load_retriever(conditioned, "cpu")
    assert model.reranker is not None
    clips = load_dataset(workshop.data, "tones2").split("test")
    waves = [read_piece(workshop.data / "tones2" / clip.path) for clip in clips]
    captions = [caption for clip in clips for caption in clip.captions]
    audio = torch.from_numpy(np.concatenate([model.embed_audio([wave]) for wave in waves]))
    text = torch.from_numpy(np.concatenate([model.embed_text([caption]) for caption in captions]))
    frames = [model.frames([wave])[0].float() for wave in waves]
    tokens = [model.token_states([caption])[0].float() for caption in captions]
    relevant = np.repeat(np.arange(12), 2)[:, None] == np.arange(12)

    def alone(states: torch.Tensor) -> Padded:
        return Padded(states[None], torch.ones(1, len(states), dtype=torch.bool))

    sides = (("t2a", text, audio, tokens, frames, relevant), ("a2t", audio, text, frames, tokens, relevant.T))
    for direction, queries, candidates, of_queries, of_candidates, truth in sides:
        conditioner = model.reranker.conditioners[direction]  # type: ignore[index]
        denoiser = model.reranker.denoisers[direction]  # type: ignore[index]
        cosine = queries @ candidates.T
        noise = query_noise(0, range(len(queries)), len(candidates))(0)
        scores = cosine.clone()
        with torch.no_grad():
            for row, query in enumerate(queries):
                listed = cosine[row].topk(5).indices
                seen = [
                    conditioner.see(
                        direction,  # type: ignore[arg-type]
                        *conditioner.project(direction, alone(of_queries[row]), alone(of_candidates[i])),  # type: ignore[arg-type]
                        candidates[i : i + 1],
                        denoiser.input_scale,
                    )
                    for i in listed.tolist()
                ]
                own, shift = torch.cat([one for one, _ in seen], 1), torch.cat([other for _, other in seen], 1)
                x0_hat = ddim_sample(
                    lambda x, level, q, c, shift=shift, denoiser=denoiser: denoiser(x, level, q, c) + shift,
                    query[None],
                    own,
                    model.reranker.schedule,
                    noise=noise[row, None, listed],
                )
                scores[row, listed] += model.reranker.fusion_weights[direction] * x0_hat[0]  # type: ignore[index]
        for system, found in (("baseline", cosine), ("diff", scores)):
            got = result.get(system, direction)  # type: ignore[arg-type]
            assert got is not None
            for metric, value in retrieval_metrics(found, truth).items():
                assert got.mean(metric) == pytest.approx(value, abs=1e-6), (system, direction, metric)


def test_rivals_see_the_same(workshop: Workshop, conditioned: Path) -> None:
    result = evaluate("tones", "tones2", data=workshop.data, runs=conditioned.parents[1], device="cpu", rivals=True)
    for direction in DIRECTIONS:
        assert result.get("one-step", direction) is not None


def plain_score(
    model: Retriever,
    direction: Direction,
    query: torch.Tensor,
    vectors: torch.Tensor,
    states: States,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """x0_hat of one query and its listed candidates, each pair alone and by the plain sampler."""
    reranker = model.reranker
    assert reranker is not None
    conditioner, denoiser = reranker.conditioners[direction], reranker.denoisers[direction]
    of_query, of_candidates = states if direction == "t2a" else (states.frames, states.tokens)
    own, shift = [], []
    with torch.no_grad():
        for i in range(len(vectors)):
            sides = conditioner.project(direction, of_query.padded(np.array([0])), of_candidates.padded(np.array([i])))
            seen, added = conditioner.see(direction, *sides, vectors[i : i + 1], denoiser.input_scale)
            own.append(seen)
            shift.append(added)
        return ddim_sample(
            lambda x, level, q, c: denoiser(x, level, q, c) + torch.cat(shift, 1),
            query[None],
            torch.cat(own, 1),
            reranker.schedule,
            noise=query_noise(0, [0], len(vectors))(0) if noise is None else noise,
        )[0]


def test_a_folder_is_searched_by_frames(workshop: Workshop, conditioned: Path, tmp_path: Path) -> None:
    """By the API: a search, sounds ranked by a text, and captions by a sound, are the final score of the files' own frames."""
    retriever, folder, text = load_retriever(conditioned, "cpu"), workshop.data / "tones" / "test", "a low tone"
    assert retriever.reranker is not None
    assert retriever.calibration is not None
    paths = sorted(folder.rglob("*.wav"))
    waves = [read_piece(path) for path in paths]
    vectors, query = (torch.from_numpy(each) for each in (retriever.embed_audio(waves), retriever.embed_text([text])))
    tokens = Ragged.of(retriever.token_states([text]), retriever.reranker.conditioners["t2a"].token_features)
    cosine = (vectors @ query[0]).double()
    near = cosine.argsort(descending=True)[:5]
    frames = retriever.frames(waves)
    listed = Ragged.of([frames[i] for i in near], frames[0].shape[1])
    for i, x0_hat in zip(near, plain_score(retriever, "t2a", query[0], vectors[near], States(tokens, listed)), strict=True):
        cosine[i] += retriever.reranker.fusion_weights["t2a"] * x0_hat
    worth = retriever.calibration.text_to_audio
    assert worth is not None
    model = load_model(conditioned, "cpu")
    reading, present = model.read(text), model.find(folder, text, index=tmp_path / "index").present
    assert present is not None
    features = score_features(cosine.numpy(), present, reading.expected, len(text.split()), len(paths))
    by_path = np.minimum(of_known(worth, features), present).tolist()
    wanted = dict(zip((str(path.relative_to(folder)) for path in paths), by_path, strict=True))
    hits = model.search(folder, text, top=len(paths), index=tmp_path / "index")
    assert {hit.path: hit.score for hit in hits} == pytest.approx(wanted, abs=2e-3)  # the index keeps vectors in half precision
    ranked = model.rank(text, paths)
    assert [each.score for each in ranked] == pytest.approx(sorted(wanted.values(), reverse=True), abs=3e-3)
    captions = ["low", "a high tone", "two tones", "a low tone", "noise in the rain", "a middle tone"]
    found = retriever.embed_text(captions)
    fit = (torch.from_numpy(found) @ vectors[0]).double()
    near = fit.argsort(descending=True)[:5]
    tokens = Ragged.of([retriever.token_states(captions)[i] for i in near], tokens.features)
    states = States(tokens, Ragged.of(frames[:1], frames[0].shape[1]))
    for i, x0_hat in zip(near, plain_score(retriever, "a2t", vectors[0], torch.from_numpy(found)[near], states), strict=True):
        fit[i] += retriever.reranker.fusion_weights["a2t"] * x0_hat
    order = [each.index for each in model.rank(paths[0], captions)]
    assert fit[order].tolist() == pytest.approx(fit.sort(descending=True).values.tolist(), abs=1e-4)


def test_query_uses_it_and_says_what_frames_cost(workshop: Workshop, conditioned: Path, trained: Path, tmp_path: Path) -> None:
    where = ["--corpus", str(workshop.data / "tones" / "test"), "--index", str(tmp_path / "index"), "--device", "cpu", "--json"]
    plain = typed(["query", "a low tone", *where, "--run", trained])
    first, second = (typed(["query", "a low tone", *where, "--run", conditioned, "--shortlist", "99"]) for _ in range(2))
    assert [each.code for each in (plain, first, second)] == [0, 0, 0]
    assert ["embedded without the frames by which" in each.err for each in (plain, first, second)] == [False, True, False]
    assert json.loads(first.out)["results"] == json.loads(second.out)["results"]
    assert json.loads(first.out)["results"] != json.loads(plain.out)["results"]
    (tmp_path / "captions.txt").write_text("low\na high tone\ntwo tones\n")
    sound = next((workshop.data / "tones" / "test").rglob("*.wav"))
    options = ["--audio", sound, "--captions", tmp_path / "captions.txt", "--run", conditioned, "--device", "cpu", "--json"]
    described = typed(["query", *options])
    found = [row["caption"] for row in json.loads(described.out)["results"]]
    captions = ["low", "a high tone", "two tones"]
    assert found == [captions[each.index] for each in load_model(conditioned, "cpu").rank(sound, captions)]


def test_scores_are_calibrated_as_searches_give_them(
    workshop: Workshop, conditioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fitted are the final scores of the frames, by training and by `calibrate` alike."""
    model, dataset = load_retriever(conditioned, "cpu"), load_dataset(workshop.data, "tones")
    assert model.reranker is not None
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert calibrate(model, workshop.data, "tones").calibration == model.calibration
    fitted: list[list[fit_calibration_module.Example]] = []
    monkeypatch.setattr(fit_calibration_module, "_fit_scores", lambda examples, _: fitted.append(list(examples)))
    monkeypatch.setattr(fit_calibration_module, "_lists", lambda matches, *_: [(True, np.arange(len(matches)))])
    calibrate(model, workshop.data, "tones")
    waves = [read_piece(dataset.root / clip.path) for clip in dataset.split("val")]
    assert max(map(len, waves)) <= model.windowing.length  # one window each
    texts = list(dict.fromkeys(normalise_caption(text) for clip in dataset.split("val") for text in clip.captions))
    vectors, queries = (torch.from_numpy(each) for each in (model.embed_audio(waves), model.embed_text(texts)))
    frames, tokens = model.frames(waves), model.token_states(texts)
    for direction, examples in zip(("t2a", "a2t"), fitted, strict=False):
        asking, listed, of_asking, of_listed = queries, vectors, tokens, frames
        if direction == "a2t":
            asking, listed, of_asking, of_listed = vectors, queries, frames, tokens
        whole = {each.query: each.scores for each in examples if each.candidates == len(listed) and each.scores is not None}
        assert whole
        for row in (min(whole), max(whole)):
            cosine = (listed @ asking[row]).double()
            order = cosine.argsort(descending=True, stable=True)
            sides = [Ragged.of([of_asking[row]], of_asking[0].shape[1])]
            sides.append(Ragged.of([of_listed[i] for i in order[:5]], of_listed[0].shape[1]))
            states = States(*sides) if direction == "t2a" else States(*reversed(sides))
            x0_hat = plain_score(model, direction, asking[row], listed[order[:5]], states)  # type: ignore[arg-type]
            wanted = cosine[order]
            wanted[:5] += model.reranker.fusion_weights[direction] * x0_hat  # type: ignore[index]
            np.testing.assert_allclose(whole[row], wanted[: fit_calibration_module.SHOWN], atol=1e-4)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_way_from_noise_ends_where_evaluation_does(
    workshop: Workshop, conditioned: Path, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = conditioned.parents[1]
    measured = evaluate("tones", "tones2", data=workshop.data, runs=runs, device="cpu").get("diff", direction)
    assert measured is not None
    monkeypatch.setattr(trajectory_module, "BLOCK_ENTRIES", 1)
    result = trajectory("tones", "tones2", data=workshop.data, runs=runs, direction=direction, item="test/3", device="cpu")
    assert result.measures[-1].r1_final == pytest.approx(measured.mean("r1"))
    assert result.count == len(result.candidates) == 5
    assert np.isfinite(result.x).all()
    np.testing.assert_allclose(result.x0_hat.sum(1), 1, atol=1e-5)
    assert [each.cosine for each in result.candidates] == sorted((each.cosine for each in result.candidates), reverse=True)
    if direction == "a2t":
        return
    # A text of one's own, by hand: its noise is that of the first row, by the candidates' places.
    free = trajectory("tones", "tones2", data=workshop.data, runs=runs, query="first second", device="cpu")
    assert free.measures == result.measures
    model, dataset = load_retriever(conditioned, "cpu"), load_dataset(workshop.data, "tones2")
    places = {clip.clip_id: place for place, clip in enumerate(dataset.split("test"))}
    listed = [places[each.clip] for each in free.candidates]
    waves = [read_piece(dataset.root / dataset.split("test")[place].path) for place in listed]
    tokens, frames = model.token_states(["first second"]), model.frames(waves)
    states = States(Ragged.of(tokens, tokens[0].shape[1]), Ragged.of(frames, frames[0].shape[1]))
    vectors = torch.from_numpy(model.embed_audio(waves))
    noise = query_noise(0, [0], len(places))(0)[:, listed]
    expected = plain_score(model, "t2a", torch.from_numpy(model.embed_text(["first second"]))[0], vectors, states, noise)
    np.testing.assert_allclose(free.x0_hat[-1], expected, atol=1e-4)


def test_a_checkpoint_of_the_other_kind_is_refused(conditioned: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(conditioned, tmp_path / "run")
    shutil.copy(trained / "diffusion" / "best.safetensors", tmp_path / "run" / "diffusion" / "best.safetensors")
    with pytest.raises(DiffATRError, match="belongs to another recipe"):
        load_retriever(tmp_path / "run", "cpu")


def test_other_encoders_are_refused_before_anything_is_trained(workshop: Workshop, tmp_path: Path) -> None:
    """By phase one, and by a phase two that asks for more than phase one was trained for."""
    TEXT_MODELS["roberta"](tmp_path / "roberta")
    other = f"text.encoder={tmp_path / 'roberta'}", "pretrain.epochs=1"
    recipe = workshop.recipe(*FRAMES, *other)
    with pytest.raises(UsageError, match="token states of a BERT"):
        pretrain("tiny", recipe, data=workshop.data, runs=tmp_path / "runs", device="cpu")
    assert not (tmp_path / "runs").exists()
    pretrain("tiny", workshop.recipe(*other), data=workshop.data, runs=tmp_path / "runs", device="cpu")
    with pytest.raises(UsageError, match="token states of a BERT"):
        train_diffusion("tiny", recipe, data=workshop.data, runs=tmp_path / "runs", device="cpu")
    assert not (tmp_path / "runs" / "tiny" / "seed-0" / "diffusion").exists()


def test_vectors_of_a_model_run_elsewhere_have_no_frames() -> None:
    recipe = load_recipe("features", ["diffusion.conditioning=frames"])
    with pytest.raises(UsageError, match=r"audio\.encoder is features\. Set diffusion\.conditioning=none"):
        check_states(recipe.audio, None)
