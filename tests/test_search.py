import dataclasses
import math

import numpy as np
import pytest
import torch
from fake_retriever import DIM, RATE, FakeRetriever, make_reranker, tone, write_tone

from diffatr_cli.core.bank import CaptionBank, LearntSounds
from diffatr_cli.core.calibration import Calibration, Logistic, presence_features
from diffatr_cli.core.noise import query_noise
from diffatr_cli.core.sampler import ddim_sample
from diffatr_cli.core.sampling import Sampling
from diffatr_cli.corpus.describe import CaptionHit, Described, describe
from diffatr_cli.corpus.index import FolderIndex, Recordings
from diffatr_cli.corpus.reading import Negation, Reading
from diffatr_cli.corpus.search import Found, Hit, embed_sound, embed_texts, search
from diffatr_cli.errors import UsageError
from diffatr_cli.model import sampling_of


def unit(rng, *shape):
    vectors = rng.normal(size=(*shape, DIM))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def recordings():
    """40 files of 1 to 4 windows."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 5, 40)
    starts = np.concatenate([np.arange(n) * 5.0 for n in counts])
    return Recordings(
        [f"f{i:02d}.wav" for i in range(40)],
        np.arange(40),
        np.cumsum([0, *counts]),
        np.stack([starts, starts + 10], 1),
        unit(rng, int(counts.sum())),
    )


def best_windows(recordings, query, unwanted=None):
    """For each file (score, path, row) of its best window, by plain loops, best first."""
    found = []
    for i, path in enumerate(recordings.paths):
        rows = range(len(recordings.vectors))[recordings.rows_of(i)]
        scores = {row: float(recordings.vectors[row].astype(np.float64) @ query) for row in rows}
        if unwanted is not None:
            scores = {
                row: s - max(0.0, float(recordings.vectors[row].astype(np.float64) @ unwanted)) for row, s in scores.items()
            }
        row = max(scores, key=scores.get)
        found.append((scores[row], path, row))
    return sorted(found, key=lambda each: (-each[0], each[1]))


def assert_hits(hits, expected, recordings):
    assert [hit.rank for hit in hits] == list(range(1, len(expected) + 1))
    assert [hit.path for hit in hits] == [path for _, path, _ in expected]
    assert [[hit.start, hit.end] for hit in hits] == [recordings.spans[row].tolist() for *_, row in expected]
    np.testing.assert_allclose([hit.score for hit in hits], [score for score, *_ in expected], atol=1e-5)


@pytest.mark.parametrize("without", [None, unit(np.random.default_rng(9))])
def test_cosine_ranks_as_plain_loops_do(recordings, without):
    queries = unit(np.random.default_rng(1), 3)
    found = search(FakeRetriever(), recordings, queries, unwanted=without, top=7)
    for query, answer in zip(queries, found, strict=True):
        assert answer.present is None
        assert_hits(answer.hits, best_windows(recordings, query, without)[:7], recordings)


def test_being_unlike_the_unwanted_is_no_merit():
    vectors = np.zeros((3, DIM), np.float32)
    vectors[:, :2] = [[0.6, 0.8], [0.6, -0.8], [0.5, 0]]
    query, unwanted = np.eye(DIM, dtype=np.float32)[:2]
    spans = np.array([[0.0, 1.0]] * 3)
    hits = search(
        FakeRetriever(),
        Recordings(["like", "opposite", "plain"], np.arange(3), np.arange(4), spans, vectors),
        query[None],
        unwanted=unwanted,
    )[0].hits
    assert [(hit.path, round(hit.score, 6)) for hit in hits] == [("opposite", 0.6), ("plain", 0.5), ("like", -0.2)]


def test_equal_scores_come_in_order_of_paths(recordings):
    vectors = np.tile(unit(np.random.default_rng(2)), (40, 1))
    same = Recordings(recordings.paths, np.arange(40), np.arange(41), recordings.spans[:40], vectors)
    hits = search(FakeRetriever(), same, unit(np.random.default_rng(3), 1), top=5)[0].hits
    assert [hit.path for hit in hits] == recordings.paths[:5]


@pytest.mark.parametrize("steps", [None, 4])
def test_diffusion_refines_the_best_windows_of_the_shortlist(recordings, steps):
    retriever, query = FakeRetriever(phase_two=True), unit(np.random.default_rng(4))
    ranked = best_windows(recordings, query)
    vectors = torch.from_numpy(recordings.vectors[[row for *_, row in ranked[:12]]])
    noise = query_noise(5, [0], 12)
    x0_hat = ddim_sample(
        retriever.reranker.denoisers["t2a"],
        torch.from_numpy(query[None]),
        vectors,
        retriever.reranker.schedule,
        steps=steps,
        eta=0.5,
        noise=noise,
    )[0]
    refined = [(cosine + 0.7 * float(x), path, row) for (cosine, path, row), x in zip(ranked, x0_hat, strict=False)]
    expected = sorted([*refined, *ranked[12:]], key=lambda each: -each[0])[:20]
    sampling = Sampling(steps, eta=0.5, shortlist=12, seed=5)
    hits = search(retriever, recordings, query[None], sampling, top=20)[0].hits
    assert_hits(hits, expected, recordings)
    other = search(retriever, recordings, query[None], sampling.but(seed=6), top=20)[0].hits
    assert [hit.score for hit in hits] != [hit.score for hit in other]
    assert hits == search(retriever, recordings, query[None], sampling, top=20)[0].hits


def test_without_a_fusion_weight_the_shortlist_is_ranked_by_x0_hat(recordings):
    retriever, query = FakeRetriever(phase_two=True), unit(np.random.default_rng(4), 1)
    sampling = Sampling(eta=0.5, shortlist=12)
    cosine = {hit.path: hit.score for hit in search(retriever, recordings, query, sampling, top=40, refine=False)[0].hits}
    fused = {hit.path: hit.score for hit in search(retriever, recordings, query, sampling, top=40)[0].hits}
    retriever.reranker = make_reranker(weight=None)
    alone = search(retriever, recordings, query, sampling, top=40)[0].hits
    assert len(alone) == 12
    np.testing.assert_allclose(
        [hit.score for hit in alone], [(fused[hit.path] - cosine[hit.path]) / 0.7 for hit in alone], atol=1e-5
    )
    assert alone == sorted(alone, key=lambda hit: -hit.score)


def test_a_query_does_not_depend_on_the_queries_beside_it(recordings):
    retriever, queries = FakeRetriever(phase_two=True), unit(np.random.default_rng(6), 3)
    together = search(retriever, recordings, queries)
    for query, answer in zip(queries, together, strict=True):
        for one, beside in zip(search(retriever, recordings, query[None])[0].hits, answer.hits, strict=True):
            assert (one.rank, one.path, one.start) == (beside.rank, beside.path, beside.start)
            assert one.score == pytest.approx(beside.score, abs=1e-6)


def test_min_score_and_wrong_numbers(recordings):
    retriever, query = FakeRetriever(phase_two=True), unit(np.random.default_rng(7), 1)
    everything = search(retriever, recordings, query, top=40)[0].hits
    assert search(retriever, recordings, query, top=40, min_score=0.2)[0].hits == [hit for hit in everything if hit.score >= 0.2]
    with pytest.raises(UsageError, match="top"):
        search(retriever, recordings, query, top=0)
    for wrong in ({"shortlist": 0}, {"steps": 11}, {"steps": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            sampling_of(retriever, folder=True, **wrong)
    assert search(retriever, Recordings.none(), query) == [Found([], None)]


def test_sounds_and_texts_find_their_like(tmp_path):
    for hz in (200, 900, 4000):
        write_tone(tmp_path / f"{hz}.wav", hz, 2)
    long = np.concatenate([tone(200, 30), tone(2000, 10), tone(200, 20)])
    import soundfile

    soundfile.write(tmp_path / "long.wav", long, RATE)
    retriever = FakeRetriever()
    index = FolderIndex(tmp_path)
    index.update(retriever)
    recordings = index.read(retriever.model_id)
    for hz in (200, 900, 4000):
        assert search(retriever, recordings, embed_texts(retriever, [f"{hz} Hz"]), top=1)[0].hits[0].path == f"{hz}.wav"
    hit = search(retriever, recordings, embed_texts(retriever, ["2000 Hz"]), top=1)[0].hits[0]
    assert (hit.path, hit.start, hit.end) == ("long.wav", 30, 40)
    hit = search(retriever, recordings, embed_sound(retriever, tone(900, 2))[None], refine=False, top=1)[0].hits[0]
    assert hit == Hit(1, "900.wav", 0, 2, pytest.approx(1, abs=1e-3))


def test_a_long_sound_is_the_mean_of_its_windows():
    retriever, waveform = FakeRetriever(), np.concatenate([tone(200, 9), tone(2000, 4)])
    mean = (retriever._embed(waveform[: 10 * RATE]) + retriever._embed(waveform[-10 * RATE :])) / 2
    np.testing.assert_allclose(embed_sound(retriever, waveform), mean / np.linalg.norm(mean), rtol=1e-5)


@pytest.mark.parametrize("text", ["", "  ", "?!"])
def test_a_text_needs_words(text):
    with pytest.raises(UsageError, match="nothing to search for"):
        embed_texts(FakeRetriever(), [text])


CALIBRATION = Calibration(
    text_to_audio=Logistic((3.0,), -1.0),
    audio_to_text=Logistic((2.0,), 0.5),
    audio_to_audio=Logistic((5.0,), -2.0),
    presence=Logistic((1.0, 2.0, -0.5, 0.25, -3.0, -20.0), 0.1),
)


def calibrated(draws=3):
    retriever = FakeRetriever(phase_two=True)
    retriever.calibration = CALIBRATION
    retriever.reranker = make_reranker(draws=draws)
    return retriever


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_calibrated_scores_are_probabilities_in_the_same_order(recordings):
    query = unit(np.random.default_rng(12), 1)
    plain, sure = FakeRetriever(phase_two=True), calibrated(draws=1)
    raw, worth = (search(model, recordings, query, Sampling(eta=0.5, shortlist=12), top=40)[0] for model in (plain, sure))
    raw, worth, present = raw.hits, worth.hits, worth.present
    assert [hit.path for hit in raw] == [hit.path for hit in worth]
    np.testing.assert_allclose([hit.score for hit in worth], [min(sigmoid(3 * hit.score - 1), present) for hit in raw], atol=1e-9)
    raw, worth = (search(model, recordings, query, top=40, refine=False)[0] for model in (plain, sure))
    np.testing.assert_allclose([hit.score for hit in worth.hits], [sigmoid(5 * hit.score - 2) for hit in raw.hits], atol=1e-9)
    assert worth.present is None


def test_presence_hears_what_learnt_sounds_near_the_best_are_called(recordings):
    model, query = FakeRetriever(), unit(np.random.default_rng(3))
    plain, heard = [1.0] + [0.0] * 7, [2.0, 5.0]
    model.calibration = dataclasses.replace(CALIBRATION, presence=Logistic((*plain, *heard), -1.0))
    learnt, captions = np.eye(2, model.dim, dtype=np.float32), np.eye(2, 3, dtype=np.float32)
    model.bank = CaptionBank(("a", "b"), captions, 0.5, sounds=LearntSounds(learnt, np.array([[0], [1]])))
    pooled = np.array([0.6, 0.8, 0.0], np.float32)
    best = recordings.vectors[best_windows(recordings, query)[0][-1]].astype(float)
    for reading, told in (
        (Reading("x", pooled=pooled), None),
        (Reading("x"), [0.0, 0.0]),  # of which nothing is known
    ):
        if told is None:
            cosine = best[:2]
            weights = np.exp((cosine - cosine.max()) / 0.03)
            told = [cosine.max(), float(weights @ [0.6, 0.8]) / weights.sum()]
        expected = sigmoid(float(best @ query) + 2 * told[0] + 5 * told[1] - 1)
        found = search(model, recordings, query[None], readings=[reading])[0]
        assert found.present == pytest.approx(expected, abs=1e-4)


def test_with_what_is_not_wanted_learnt_sounds_are_asked_of_the_nearest_all_the_same(recordings):
    model, query = FakeRetriever(), unit(np.random.default_rng(3))
    learnt, captions = np.eye(2, model.dim, dtype=np.float32), np.eye(2, 3, dtype=np.float32)
    model.bank = CaptionBank(("a", "b"), captions, 0.5, sounds=LearntSounds(learnt, np.array([[0], [1]])))
    of_sounds = Logistic((0.0,) * 8 + (3.0, 4.0), -1.0)
    model.calibration = Calibration(Logistic((1.0, 1.0, 0.0, 0.0, 0.0), 0.0), None, None, of_sounds)
    reading, nearest = Reading("x", pooled=np.array([0.6, 0.8, 0.0], np.float32)), best_windows(recordings, query)[0][-1]
    unwanted = recordings.vectors[nearest]  # which pushes the nearest of all down
    hits = search(model, recordings, query[None], readings=[reading], unwanted=unwanted, top=40)[0].hits
    rows = [recordings.offsets[recordings.paths.index(hit.path)] + int(hit.start / 5) for hit in hits]
    cosine = recordings.vectors[rows] @ query
    assert cosine.argmax() > 0  # the first hit is not the nearest
    heard = model.bank.heard(recordings.vectors[[rows[cosine.argmax()]]], reading.pooled[None])[0]
    sure = float(of_sounds([*[0.0] * 8, *heard]))
    expected = sigmoid(cosine + np.log(sure / (1 - sure)))
    np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-3)


def test_presence_comes_from_all_draws_over_the_shortlist(recordings):
    retriever, query = calibrated(), unit(np.random.default_rng(13))
    ranked = best_windows(recordings, query)[:12]
    vectors = torch.from_numpy(recordings.vectors[[row for *_, row in ranked]])
    draws = [
        ddim_sample(
            retriever.reranker.denoisers["t2a"],
            torch.from_numpy(query[None]),
            vectors,
            retriever.reranker.schedule,
            eta=0.5,
            noise=query_noise(5, [0], 12, draw),
        )[0].numpy()
        for draw in range(3)
    ]
    features = presence_features(np.array([score for score, *_ in ranked]), np.stack(draws))
    expected = sigmoid(features[:6] @ CALIBRATION.presence.weights + CALIBRATION.presence.bias)
    found = search(retriever, recordings, query[None], retriever.reranker.sampling.but(shortlist=12, seed=5))[0]
    assert found.present == pytest.approx(expected, abs=1e-5)
    fused = [s + 0.7 * float(np.mean([draw[i] for draw in draws])) for i, (s, *_) in enumerate(ranked)]
    assert found.hits[0].score == pytest.approx(min(expected, sigmoid(3 * max(fused) - 1)), abs=1e-5)
    strange = search(
        retriever,
        recordings,
        query[None],
        retriever.reranker.sampling.but(shortlist=12, seed=5),
        readings=[Reading("x", 0.5, "y", strangeness=0.1)],
    )[0]
    odds = expected / (1 - expected) * np.exp(-20 * 0.1)
    assert strange.present == pytest.approx(odds / (1 + odds), abs=1e-5)


@pytest.mark.parametrize("phase_two", [False, True])
def test_captions_for_a_sound(phase_two):
    retriever = FakeRetriever(phase_two=phase_two)
    captions = ["200 Hz", "900 Hz", "4000 Hz", "950 Hz"]
    sound = embed_sound(retriever, tone(900, 2))
    cosine = embed_texts(retriever, captions).astype(np.float64) @ sound
    order = np.argsort(-cosine)
    scores = cosine[order]
    if phase_two:
        scores[:3] += (
            0.7
            * ddim_sample(
                retriever.reranker.denoisers["a2t"],
                torch.from_numpy(sound[None]),
                torch.from_numpy(embed_texts(retriever, [captions[i] for i in order[:3]])),
                retriever.reranker.schedule,
                eta=0.5,
                noise=query_noise(0, [0], 3),
            )[0].numpy()
        )
    expected = sorted(zip(scores, order, strict=True), reverse=True)
    sampling = Sampling(eta=0.5, shortlist=3)
    plain = describe(retriever, sound, captions, sampling)
    hits = plain.hits
    assert (plain.present, plain.calibrated, plain.verdict, plain.certain) == (None, False, None, True)
    assert "compare the captions" in plain.remark
    assert [hit.caption for hit in hits] == [captions[i] for _, i in expected]
    np.testing.assert_allclose([hit.score for hit in hits], [score for score, _ in expected], atol=1e-5)
    assert describe(retriever, sound, captions, sampling, top=1).hits == [CaptionHit(1, hits[0].caption, hits[0].score)]
    retriever.calibration = CALIBRATION
    worth = describe(retriever, sound, captions, sampling).hits
    np.testing.assert_allclose([hit.score for hit in worth], [sigmoid(2 * hit.score + 0.5) for hit in hits], atol=1e-9)
    assert describe(retriever, sound, []) == Described([], None, calibrated=True)
    with pytest.raises(UsageError, match="top"):
        describe(retriever, sound, captions, top=0)


@pytest.mark.parametrize("told_below", [0.0, 0.3, 1.0])
def test_captions_of_which_none_fits_are_told_so(told_below):
    """The list never contradicts the judgement: no caption is surer than that any of them fits."""
    model, sound = FakeRetriever(), unit(np.random.default_rng(6))
    fits = Logistic((4.0, 0.0, 0.0, 0.1, 0.0, 0.0, 0.0), -2.0)
    model.calibration = dataclasses.replace(
        CALIBRATION, audio_to_text=Logistic((30.0,), 0.0), captions=fits, captions_told_below=told_below
    )
    captions = ["300 Hz", "900 Hz", "2000 Hz", "6000 Hz"]
    found = describe(model, sound, captions)
    cosine = np.sort(embed_texts(model, captions).astype(np.float64) @ sound)[::-1]
    softmax = np.exp(cosine / 0.07) / np.exp(cosine / 0.07).sum()
    concentration = math.log(4) + (softmax * np.log(softmax)).sum()
    assert found.present == pytest.approx(sigmoid(4 * cosine[0] + 0.1 * concentration - 2), abs=1e-5)
    assert found.verdict == ("found" if found.present >= told_below else "absent")
    assert found.certain == (found.verdict == "found")
    assert found.remark == (None if found.certain else "none of these captions fits.")
    wanted = np.minimum(sigmoid(30 * cosine), found.present)
    np.testing.assert_allclose([hit.score for hit in found.hits], wanted, atol=1e-5)
    assert describe(model, sound, captions, min_score=2.0).hits == []


def test_a_find_that_no_hit_bears_out_is_none(recordings):
    """However sure the judgement of presence is: the list would contradict it."""
    retriever = calibrated()
    for bias, verdict in ((-9.0, "absent"), (9.0, "found")):
        retriever.calibration = dataclasses.replace(
            CALIBRATION, presence=Logistic((0.0,) * 5, 9.0), told_below=0.1, text_to_audio=Logistic((1.0,), bias)
        )
        (found,) = search(retriever, recordings, recordings.vectors[:1])
        assert found.present > 0.99
        assert found.verdict == verdict


def test_with_something_unwanted_the_probability_is_still_that_of_the_query(recordings):
    """Ranked by the score with the penalty taken off, shown with the probability of the score without it."""
    query, unwanted = unit(np.random.default_rng(20)), unit(np.random.default_rng(21))
    sampling, model = Sampling(eta=0.5, shortlist=40), calibrated(draws=1)
    plain = FakeRetriever(phase_two=True)
    ranked = search(plain, recordings, query[None], sampling, unwanted=unwanted, top=40)[0]
    found = search(model, recordings, query[None], sampling, unwanted=unwanted, top=40)[0]
    assert found.present is None
    assert [hit.path for hit in found.hits] == [hit.path for hit in ranked.hits]
    penalty = {
        path: max(0.0, float(recordings.vectors[row] @ unwanted)) for _, path, row in best_windows(recordings, query, unwanted)
    }
    assert max(penalty.values()) > 0.1
    expected = [sigmoid(3 * (hit.score + penalty[hit.path]) - 1) for hit in ranked.hits]
    np.testing.assert_allclose([hit.score for hit in found.hits], expected, atol=1e-5)


def test_a_kind_of_search_without_a_calibration_says_so(recordings):
    query, model = unit(np.random.default_rng(22), 1), calibrated()
    model.calibration = dataclasses.replace(CALIBRATION, audio_to_audio=None, presence=None)
    texts, sounds = (search(model, recordings, query, refine=refine)[0] for refine in (True, False))
    assert (texts.calibrated, sounds.calibrated) == (True, False)
    assert texts.present is None
    np.testing.assert_allclose(
        [hit.score for hit in sounds.hits], [hit.score for hit in search(FakeRetriever(), recordings, query)[0].hits]
    )


def test_equal_content_gets_an_equal_score_and_costs_nobody_else(recordings):
    """Copies of the best recording, under names all over the folder: the others score as they do beside one of it."""
    query, model, sampling = unit(np.random.default_rng(30)), calibrated(), Sampling(eta=0.5, draws=3, shortlist=10)
    alone = search(model, recordings, query[None], sampling, top=40)[0]
    copied = recordings.paths.index(alone.hits[0].path)
    names = [*recordings.paths, *(f"{'afz'[i % 3]}-copy-{i:02d}.wav" for i in range(12))]
    order = sorted(range(len(names)), key=names.__getitem__)
    of_file = [*range(40), *[copied] * 12]
    number = {content: i for i, content in enumerate(dict.fromkeys(of_file[i] for i in order))}
    rows = [np.arange(len(recordings.vectors))[recordings.rows_of(content)] for content in number]
    with_copies = Recordings(
        [names[i] for i in order],
        np.array([number[of_file[i]] for i in order]),
        np.cumsum([0, *map(len, rows)]),
        recordings.spans[np.concatenate(rows)],
        recordings.vectors[np.concatenate(rows)],
    )
    found = search(model, with_copies, query[None], sampling, top=60)[0]
    assert found.present == pytest.approx(alone.present, abs=1e-5)
    best = [hit for hit in found.hits if hit.path == alone.hits[0].path or "copy" in hit.path]
    assert best == found.hits[:13]
    assert [hit.path for hit in best] == sorted(hit.path for hit in best)
    assert {hit.score for hit in best} == {best[0].score}
    assert [hit.path for hit in found.hits[13:]] == [hit.path for hit in alone.hits[1:]]
    np.testing.assert_allclose([hit.score for hit in found.hits[12:]], [hit.score for hit in alone.hits], atol=1e-5)
    assert [hit.path for hit in search(model, with_copies, query[None], sampling, top=5)[0].hits] == [
        hit.path for hit in best[:5]
    ]


def test_copies_in_a_folder_share_their_content(tmp_path):
    for hz in (200, 900, 4000):
        write_tone(tmp_path / f"{hz}.wav", hz, 12)
    for copy in ("a.wav", "deep/z.wav"):
        (tmp_path / copy).parent.mkdir(exist_ok=True)
        (tmp_path / copy).write_bytes((tmp_path / "900.wav").read_bytes())
    retriever, index = FakeRetriever(phase_two=True), FolderIndex(tmp_path)
    index.update(retriever)
    for recordings in (index.read(retriever.model_id), index._read_tables(retriever.model_id)):
        assert recordings.paths == ["200.wav", "4000.wav", "900.wav", "a.wav", "deep/z.wav"]
        assert recordings.content.tolist() == [0, 1, 2, 2, 2]
        assert len(recordings.vectors) == 6  # two windows of each content
        hits = search(retriever, recordings, embed_texts(retriever, ["900 Hz"]), top=3)[0].hits
        assert [hit.path for hit in hits] == ["900.wav", "a.wav", "deep/z.wav"]
        assert len({hit.score for hit in hits}) == 1


def test_weight_nothing_samples_nothing(recordings, monkeypatch):
    """Where validation found the cosine as good, a search is that of a model without diffusion, presence too."""
    presence = Logistic((1.0, 2.0, 0.5, 0.1, -1.0), -2.0)  # of before queries were read
    calibration = Calibration(Logistic((5.0,), -1.0), Logistic((4.0,), -1.0), None, presence)
    cosine, idle = FakeRetriever(), FakeRetriever(phase_two=True)
    idle.reranker = make_reranker(weight=0.0)
    cosine.calibration = idle.calibration = calibration
    monkeypatch.setattr("diffatr_cli.corpus.search.sample_x0", lambda *_: pytest.fail("sampled"))
    queries = unit(np.random.default_rng(5), 3)
    assert search(idle, recordings, queries) == search(cosine, recordings, queries)
    captions = ["300", "500", "900"]
    assert describe(idle, queries[0], captions) == describe(cosine, queries[0], captions)


@pytest.mark.parametrize("told_below", [0.0, 0.3, 1.0])
def test_the_list_never_contradicts_the_judgement(recordings, told_below):
    """No hit is surer than that anything is there; what is not found is no match, and the reason is told."""
    model = FakeRetriever()
    model.calibration = dataclasses.replace(CALIBRATION, text_to_audio=Logistic((30.0,), 0.0), told_below=told_below)
    queries = unit(np.random.default_rng(3), 5)
    readings = [
        Reading("known", 0.9, "a dog"),
        Reading("strange", 0.4, "a dog", strangeness=0.2),
        Reading("no dog", 0.9, "a dog", negation=Negation(None, "dog")),
        Reading("misspelt", 0.4, "a dog", strangeness=0.2, respelt="dog"),
        Reading("ein Hund", 0.4, "a dog", strangeness=0.2, foreign=True),
    ]
    known, strange, negated, misspelt, foreign = search(model, recordings, queries, readings=readings, top=40)
    for found in (known, strange, misspelt):
        assert max(hit.score for hit in found.hits) <= found.present
        assert (found.verdict == "found") == (found.present >= told_below) == found.certain
        assert found.certain == (found.remark is None)
    assert (negated.verdict, negated.present, negated.certain) == ("negated", None, False)
    assert '--not "dog"' in negated.remark
    assert (foreign.verdict, foreign.certain) == ("unknown", False)  # whatever it sounds like
    assert foreign.remark.endswith("The model understands English alone.")
    if told_below == 1:
        assert known.remark == "nothing here sounds like that."
        assert strange.remark == "no sound by that name was learned; nearest: a dog."
        assert misspelt.remark.endswith('nearest: a dog. Did you mean "dog"?')


def test_a_model_without_judgement_of_presence_still_tells_of_strange_names(recordings):
    found = search(FakeRetriever(), recordings, unit(np.random.default_rng(3), 1), readings=[Reading("x", 0.3, "y", 0.3)])[0]
    assert (found.verdict, found.present) == ("unknown", None)
