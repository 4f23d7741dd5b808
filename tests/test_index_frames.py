"""The frames of an index: those of the model, of the shortlist alone, whole or made again; and searches that re-rank by them."""

import os
import random
import shutil
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_retriever import DIM, RATE, FakeRetriever, contents, make_reranker, tone, write_tone

from diffatr_cli.core.noise import query_noise
from diffatr_cli.core.query_conditioned import QueryConditioner
from diffatr_cli.core.ragged import Ragged
from diffatr_cli.core.sampler import ddim_sample
from diffatr_cli.core.sampling import Sampling
from diffatr_cli.core.scoring import Reranker
from diffatr_cli.core.windows import mean_direction, spans
from diffatr_cli.corpus import batches, commits, findings, store
from diffatr_cli.corpus import frames as module
from diffatr_cli.corpus.describe import describe
from diffatr_cli.corpus.examine import Failure
from diffatr_cli.corpus.frames import FrameTable
from diffatr_cli.corpus.index import FolderIndex, Recordings
from diffatr_cli.corpus.report import CannotUpdate, Damaged
from diffatr_cli.corpus.search import embed_sound, embed_texts, hear_sound, search, token_states
from diffatr_cli.corpus.session import SearchSession
from diffatr_cli.corpus.trajectory import trajectory
from diffatr_cli.data.audio import load_audio

FRAME, TOKEN = 6, 5  # features
NAMES = {"a.wav": (300, 12.0), "b.wav": (440, 0.3), "c/d.wav": (900, 0.002), "e.wav": (1200, 23.0), "f.wav": (2000, 1.0)}


def scattered_reranker(**sampling):
    """Untrained, with conditioners that are off their start at zero."""
    plain = make_reranker(**sampling)
    generator = torch.Generator().manual_seed(3)
    conditioners = {}
    for direction in ("t2a", "a2t"):
        conditioner = QueryConditioner(TOKEN, FRAME, DIM, width=8, generator=generator)
        with torch.no_grad():
            for parameter in conditioner.parameters():
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
        conditioners[direction] = conditioner.eval()
    return Reranker(plain.denoisers, plain.schedule, plain.sampling, plain.fusion_weights, conditioners=conditioners)


class FramedRetriever(FakeRetriever):
    """With frames, a few a second, and with as many tokens as a text has words."""

    sees_frames = True

    def __init__(self, model_id="model-a", **sampling):
        super().__init__(model_id)
        self.reranker = scattered_reranker(**sampling)

    def frames(self, waveforms):
        found = []
        for wave in waveforms:
            parts = np.array_split(wave, 1 + len(wave) // RATE)
            rows = [
                [len(part) / RATE, *(np.abs(np.fft.rfft(part, 4096))[200 * i :][:200].mean() for i in range(5))] for part in parts
            ]
            found.append(torch.from_numpy(np.log1p(np.array(rows, np.float32))).half())
        return found

    def embed_with_frames(self, waveforms):
        return self.embed_audio(waveforms), self.frames(waveforms)

    def token_states(self, captions):
        found = []
        for caption in captions:
            words = [np.random.default_rng(sum(word.encode())).normal(size=TOKEN) for word in caption.split()]
            found.append(torch.from_numpy(np.array(words, np.float32)).half())
        return found


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "clips"
    for i, (name, (hz, seconds)) in enumerate(NAMES.items()):
        write_tone(folder / name, hz, seconds, seed=i)
    shutil.copy(folder / "b.wav", folder / "copy of b.wav")
    (folder / "no sound.wav").write_text("none")
    return folder


def indexed(corpus, model=None, folder=None):
    index, model = FolderIndex(corpus, folder), model or FramedRetriever()
    index.update(model)
    return index, model


def true_frames(corpus, recordings, model):
    """Of every window, by the files themselves."""
    found = []
    for content in range(len(recordings.offsets) - 1):
        wave = load_audio(corpus / recordings.paths[recordings.files_of(content)[0]])
        found += model.frames([wave[start:end] for start, end in spans(len(wave))])
    return [each.numpy() for each in found]


def assert_whole(corpus, index, model):
    """What is read are the frames of the files."""
    recordings = index.read(model.model_id, frames=True)
    assert recordings.paths == sorted([*NAMES, "copy of b.wav"])
    wanted = true_frames(corpus, recordings, model)
    got = recordings.frames(np.arange(len(recordings.vectors)))
    assert len(got) == len(wanted) == len(recordings.vectors)
    for i, each in enumerate(wanted):
        assert np.array_equal(got.values[got.starts[i] : got.starts[i] + got.lengths[i]], each)


def sequence(ragged, row):
    return ragged.padded(np.array([row]))


def by_hand(model, direction, query, vectors, of_query, of_candidates, cosine, sampling):
    """The final score of a shortlist, each pair alone and by the plain sampler."""
    reranker = model.reranker
    conditioner, denoiser = reranker.conditioners[direction], reranker.denoisers[direction]
    own, shift = [], []
    with torch.no_grad():
        for i in range(len(vectors)):
            sides = conditioner.project(direction, sequence(of_query, 0), sequence(of_candidates, i))
            seen, added = conditioner.see(direction, *sides, torch.from_numpy(vectors[i : i + 1]), denoiser.input_scale)
            own.append(seen)
            shift.append(added)
        x0_hat = torch.zeros(1, len(vectors))
        for draw in range(sampling.draws):
            noise = query_noise(sampling.seed, [0], len(vectors), draw)
            x0_hat += ddim_sample(
                lambda x, level, q, c: denoiser(x, level, q, c) + torch.cat(shift, 1),
                torch.from_numpy(query)[None],
                torch.cat(own, 1),
                reranker.schedule,
                eta=sampling.eta,
                noise=noise,
            )
    return cosine + reranker.fusion_weights[direction] * (x0_hat[0] / sampling.draws).numpy()


def test_frames_are_those_of_the_windows(corpus):
    index, model = indexed(corpus)
    assert_whole(corpus, index, model)
    for snapshot in index.folder.glob("snapshot-*"):
        snapshot.unlink()
    assert_whole(corpus, index, model)
    embedded = model.embedded
    assert index.update(model).unchanged == 6
    assert model.embedded == embedded
    assert_whole(corpus, index, model)


@pytest.mark.parametrize("batch", [1, 3, 256])
def test_frames_by_a_gpu_are_those_of_the_windows(corpus, monkeypatch, batch):
    """Windows wait there while others are embedded, and commits come between them."""
    for number in range(8):
        write_tone(corpus / f"more {number}.wav", 300 + number, 0.5 if number % 2 else 21, seed=number)
    monkeypatch.setattr(batches, "GPU_BATCH", batch)
    monkeypatch.setattr(commits, "_COMMIT_SECONDS", 0.0)
    model = FramedRetriever()
    model.device = "cuda"
    recordings = indexed(corpus, model)[0].read("model-a", frames=True)
    assert len(recordings.paths) == len(NAMES) + 1 + 8
    got = recordings.frames(np.arange(len(recordings.vectors)))
    np.testing.assert_array_equal(got.values, np.concatenate(true_frames(corpus, recordings, model)))


@pytest.mark.parametrize("shortlist", [2, 4, 100], ids=["2", "4", "more than there is"])
def test_a_search_is_the_final_score_of_the_frames(corpus, shortlist):
    index, model = indexed(corpus)
    recordings, sampling = index.read("model-a", frames=True), Sampling(eta=0.5, draws=2, shortlist=shortlist)
    texts = ["440 Hz at a distance", "1200"]  # of several tokens, and of one
    queries = embed_texts(model, texts)
    found = search(model, recordings, queries, sampling, tokens=token_states(model, texts), top=6)
    all_frames, differs = true_frames(corpus, recordings, model), False
    for text, query, answer in zip(texts, queries, found, strict=True):
        cosine = recordings.vectors @ query
        best = [a + int(cosine[a:b].argmax()) for a, b in zip(recordings.offsets, recordings.offsets[1:], strict=False)]
        order = np.argsort(-cosine[best], kind="stable")
        scores = cosine[best].astype(np.float64)
        near = order[:shortlist]
        rows = [best[i] for i in near]
        tokens = Ragged.of(model.token_states([text]), TOKEN)
        frames = Ragged.of([torch.from_numpy(all_frames[row]) for row in rows], FRAME)
        scores[near] = by_hand(model, "t2a", query, recordings.vectors[rows], tokens, frames, scores[near], sampling)
        wanted = {path: scores[recordings.content[i]] for i, path in enumerate(recordings.paths)}
        if shortlist >= len(best):
            assert {hit.path for hit in answer.hits} == set(wanted)
        for hit in answer.hits:
            assert hit.score == pytest.approx(wanted[hit.path], abs=1e-5)
        assert [hit.path for hit in answer.hits] == sorted(wanted, key=lambda path: (-wanted[path], path))[: len(answer.hits)]
        plain = replace_conditioners(model)
        differs |= [hit.score for hit in search(plain, recordings, query[None], sampling, top=6)[0].hits] != [
            hit.score for hit in answer.hits
        ]
    assert differs


def replace_conditioners(model):
    plain = FakeRetriever()
    own = model.reranker
    plain.reranker = Reranker(own.denoisers, own.schedule, own.sampling, own.fusion_weights)
    return plain


def test_captions_of_a_sound_are_ranked_by_its_frames(corpus):
    model, sampling = FramedRetriever(), Sampling(eta=0.5, shortlist=3)
    for name in ("e.wav", "c/d.wav"):  # of several windows, and shorter than a frame
        wave = load_audio(corpus / name)
        captions = ["300", "900 Hz in the rain", "1200 Hz", "50 is low", "440"]
        heard, frames = hear_sound(model, wave)
        sound = mean_direction(heard)
        np.testing.assert_allclose(sound, embed_sound(model, wave), atol=1e-3)  # an index keeps 16 bits
        pieces = [wave[start:end] for start, end in spans(len(wave))]
        joined = Ragged.of([torch.cat(model.frames(pieces))], FRAME)
        vectors = model.embed_text(captions)
        cosine = (vectors @ heard.T).max(1).astype(np.float64)  # each caption's best window
        near = np.argsort(-cosine, kind="stable")[:3]
        tokens = Ragged.of([model.token_states([captions[i]])[0] for i in near], TOKEN)
        cosine[near] = by_hand(model, "a2t", sound, vectors[near], joined, tokens, cosine[near], sampling)
        hits = describe(model, heard, captions, sampling, frames=frames).hits
        assert [hit.caption for hit in hits] == [captions[i] for i in np.argsort(-cosine, kind="stable")]
        assert [hit.score for hit in hits] == pytest.approx(sorted(cosine, reverse=True), abs=1e-5)
    with pytest.raises(ValueError, match="re-ranks by frames"):
        describe(model, heard, captions, sampling)


def test_a_text_that_is_written_as_a_file_is_called_meets_frames_by_its_words(corpus):
    _, model = indexed(corpus)
    one, other = (token_states(model, [text]) for text in ("440 Hz", "440_Hz.wav"))
    assert one is not None
    assert other is not None
    assert np.array_equal(one.values, other.values)


def test_only_the_shortlist_is_read(corpus, monkeypatch):
    index, model = indexed(corpus)
    recordings, asked, read = index.read("model-a", frames=True), [], FrameTable.read
    monkeypatch.setattr(FrameTable, "read", lambda self, windows: asked.extend(windows) or read(self, windows))
    query, tokens = embed_texts(model, ["440 Hz"]), token_states(model, ["440 Hz"])
    search(model, recordings, query, Sampling(shortlist=3), tokens=tokens)
    assert len(asked) == len(set(asked)) == 3
    search(model, recordings, query, refine=False)
    assert len(asked) == 3
    with pytest.raises(ValueError, match="re-ranks by frames"):
        search(model, recordings, query)


def test_an_empty_folder_has_nothing_to_re_rank(tmp_path):
    (tmp_path / "clips").mkdir()
    index, model = FolderIndex(tmp_path / "clips"), FramedRetriever()
    recordings = index.read("model-a", frames=True)
    assert len(recordings) == 0
    assert search(model, recordings, embed_texts(model, ["1 Hz"]), tokens=token_states(model, ["1 Hz"]))[0].hits == []


def test_an_index_without_frames_is_made_again_and_says_what_it_costs(corpus, tmp_path):
    plain, told = FakeRetriever(), []
    index, _ = indexed(corpus, plain)
    assert len(index.read("model-a", frames=True)) == 0
    before = contents(index)
    model = FramedRetriever()
    report = index.update(model, tell=told.append)
    assert (report.embedded, report.repaired, model.embedded) == (5, 0, 1 + 1 + 2 + 1 + 4 + 1)  # and one for the sizes
    (line,) = told
    assert "6 recordings embedded without the frames" in line
    # 11 frames of 6 numbers of two bytes, 12 windows a minute, in MB
    assert "and 0.0 MB of the disk for each minute of sound" in line
    assert contents(index) == before
    assert_whole(corpus, index, model)
    # Both go on with what is there.
    for again in (model, plain, model, plain):
        embedded = again.embedded
        assert index.update(again, tell=told.append).embedded == 0
        assert again.embedded == embedded
    # What only the other has embedded is read again, and nothing else.
    write_tone(corpus / "g.wav", 777, 1, seed=9)
    assert index.update(plain).embedded == 1
    assert len(index.read("model-a", frames=True)) == 6
    assert index.update(model, tell=told.append).embedded == 1
    assert "1 recording " in told[1]
    assert len(index.read("model-a", frames=True)) == 7
    assert len(told) == 2
    # A new index says nothing.
    FolderIndex(corpus, tmp_path / "new").update(FramedRetriever(), tell=told.append)
    assert len(told) == 2


def test_another_model_has_frames_of_its_own(corpus):
    index, one = indexed(corpus)
    other = FramedRetriever("model-b")
    index.update(other)
    for model in (one, other):
        assert_whole(corpus, index, model)


def test_frames_of_files_that_are_gone_stay_for_searches_that_run_and_go_later(corpus, monkeypatch):
    index, model = indexed(corpus)
    old = index.read("model-a", frames=True)
    (corpus / "e.wav").unlink()
    index.update(model)
    assert len(index.read("model-a", frames=True)) == 5
    assert len(old.frames(np.arange(len(old.vectors)))) == len(old.vectors)
    monkeypatch.setattr(module, "_KEEP_SECONDS", -1.0)
    write_tone(corpus / "g.wav", 777, 1, seed=9)
    index.update(model)
    with pytest.raises(Damaged):
        old.frames(np.arange(len(old.vectors)))
    with sqlite3.connect(index._frame_table("model-a").path) as database:
        assert database.execute("SELECT count(*) FROM frames").fetchone() == (2 + 1 + 1 + 1 + 1,)
    # One that comes back in time is used again.
    monkeypatch.setattr(module, "_KEEP_SECONDS", 600.0)
    (corpus / "g.wav").rename(corpus.parent / "g.wav")
    index.update(model)
    (corpus.parent / "g.wav").rename(corpus / "g.wav")
    index.update(model)
    monkeypatch.setattr(module, "_KEEP_SECONDS", -1.0)
    write_tone(corpus / "h.wav", 555, 1, seed=10)
    index.update(model)
    assert {"g.wav", "h.wav"} <= set(index.read("model-a", frames=True).paths)


def test_a_file_that_fails_after_its_first_windows_leaves_no_frames(corpus, monkeypatch):
    monkeypatch.setattr(batches, "BATCH", 1)
    examine = findings.examine

    def fails(path, *rest):
        for number, finding in enumerate(examine(path, *rest)):
            if path.name == "e.wav" and number == 3:
                yield Failure("changed while it was read", lasting=False)
                return
            yield finding

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(findings, "examine", fails)
        index, model = indexed(corpus)
    assert len(index.read("model-a", frames=True)) == 5
    with sqlite3.connect(index._frame_table("model-a").path) as database:
        assert database.execute("SELECT count(*) FROM frames").fetchone() == (5,)
    index.update(model)
    assert_whole(corpus, index, model)


class _Killed(BaseException):
    pass


def test_a_kill_between_any_two_writes_is_healed_by_the_next_update(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "BATCH", 2)
    monkeypatch.setattr(commits, "_COMMIT_WINDOWS", 3)
    writes = [(FrameTable, name) for name in ("add", "complete", "keep", "_write_anew")]
    writes += [(store.WindowTable, "add"), (store.FileTable, "put")]
    fresh = contents(indexed(corpus, folder=tmp_path / "fresh")[0])
    kills = 0
    for owner, name in writes:
        for after in (False, True):
            for nth in (0, 2):
                folder, left, original = tmp_path / f"{name}-{owner.__name__}-{after}-{nth}", [nth], getattr(owner, name)

                def dying(self, *args, left=left, original=original, after=after, **options):
                    left[0] -= 1
                    if left[0] == -1 and not after:
                        raise _Killed
                    result = original(self, *args, **options)
                    if left[0] == -1:
                        raise _Killed
                    return result

                with monkeypatch.context() as patch:
                    patch.setattr(owner, name, dying)
                    try:
                        FolderIndex(corpus, folder).update(FramedRetriever())
                    except _Killed:
                        kills += 1
                index, model = indexed(corpus, folder=folder)
                assert_whole(corpus, index, model)
                assert contents(index) == fresh
    assert kills > 10


# Damage


def flip(path, rng, bits, within=None):
    """As bits flip on a disk: the time stays."""
    times, content = path.stat(), bytearray(path.read_bytes())
    for _ in range(bits):
        content[rng.randrange(within or len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def heal(corpus, index, model):
    """What a search that met damage leaves behind is mended by the next update."""
    report = index.update(model)
    assert_whole(corpus, index, model)
    return report


@pytest.fixture(scope="module")
def table_file(tmp_path_factory):
    """A table of 40 contents, some larger than a page and some smaller, and what it holds."""
    table, rng = FrameTable(tmp_path_factory.mktemp("table"), "frames"), np.random.default_rng(0)
    table.mend()
    held = {}
    for i in range(40):
        content, windows = f"{i:032x}", int(rng.integers(1, 5))
        held[content] = [rng.normal(size=(int(rng.integers(1, 60)), 24)).astype(np.float16) for _ in range(windows)]
        table.add(content, 0, held[content][:2])
        table.add(content, 2, held[content][2:])
    table.complete({content: len(windows) for content, windows in held.items()})
    return table.path, held


def assert_true(table, content, windows):
    got = table.read([(content, number) for number in range(len(windows))])
    assert np.array_equal(got.values, np.concatenate(windows))


def take_up(table, held, whole):
    """What an update does: put in what is missing."""
    missing = held.keys() - whole
    for content in missing:
        table.add(content, 0, held[content])
    table.complete({content: len(held[content]) for content in missing})
    table.keep(set(held))


@pytest.mark.parametrize("bits", [1, 4, 60])
def test_no_flipped_bit_changes_what_is_read(table_file, tmp_path, bits):
    """Either the frames are the true ones, or it is told; and what is mended holds the rest, and takes up what was lost."""
    path, held = table_file
    rng, told, lost = random.Random(bits), 0, 0
    for number in range(40):
        table = FrameTable(tmp_path, "frames")
        shutil.copy(path, table.path)
        flip(table.path, rng, bits, within=100 if number < 10 else None)  # the header more often than by chance
        for content, windows in held.items():
            try:
                assert_true(table, content, windows)
            except (Damaged, CannotUpdate):
                told += 1
        try:
            whole, damaged = table.mend()
        except CannotUpdate:  # what SQLite takes for a refusal; the next bit is another one
            continue
        assert not whole & damaged
        assert table.contents() == whole
        lost += len(held) - len(whole)
        try:
            take_up(table, held, whole)
        except Damaged:  # where it only shows when the table is changed: an update begins again, as here
            take_up(table, held, table.mend(anew=True)[0])
        for content, windows in held.items():
            assert_true(table, content, windows)
        assert FrameTable(tmp_path, "frames").mend() == (set(held), set())
    assert told
    assert lost


def test_damage_that_a_search_meets_is_mended_by_the_next_update(corpus):
    index, model = indexed(corpus)
    path, rng = index._frame_table("model-a").path, random.Random(0)
    for _ in range(3):
        flip(path, rng, 300)
        with pytest.raises(Damaged, match="diffatr index"):
            assert_whole(corpus, index, model)
        assert heal(corpus, index, model).repaired


def test_an_update_that_looks_mends_what_no_search_has_met(corpus):
    index, model = indexed(corpus)
    path, rng = index._frame_table("model-a").path, random.Random(1)
    for number in range(3):
        flip(path, rng, 300)
        write_tone(corpus / "new.wav", 100 + number, 0.2, seed=number)
        assert index.update(model).repaired
        (corpus / "new.wav").unlink()
        index.update(model)
        assert_whole(corpus, index, model)


@pytest.mark.parametrize("how", ["gone", "empty", "half", "text", "another"])
def test_a_file_that_is_no_table_is_made_again(corpus, how):
    index, model = indexed(corpus)
    path = index._frame_table("model-a").path
    recordings = index.read("model-a", frames=True)
    if how == "gone":
        path.unlink()
    elif how == "another":
        path.unlink()
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE contents (x)")
        database.close()
    else:
        content = path.read_bytes()
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "text": b"frames" * 5000}[how])
    with pytest.raises(Damaged, match="diffatr index"):
        recordings.frames(np.arange(len(recordings.vectors)))
    report = heal(corpus, index, model)
    assert report.embedded == 5
    assert report.repaired == (0 if how == "gone" else 6)


def test_one_damaged_window_costs_its_recording_alone(corpus):
    index, model = indexed(corpus)
    path = index._frame_table("model-a").path
    with sqlite3.connect(path) as database:
        (content,) = database.execute("SELECT hash FROM contents WHERE windows = 4").fetchone()
        database.execute("UPDATE frames SET frames = zeroblob(length(frames)) WHERE hash = ? AND number = 2", (content,))
    database.close()
    report = heal(corpus, index, model)
    assert (report.embedded, report.repaired, report.unchanged) == (1, 1, 5)


# Windows onto it


def test_a_session_re_ranks_and_shows_the_way(corpus):
    model, text = FramedRetriever(), "900 Hz tone"
    indexed(corpus, FakeRetriever())
    told = []
    session = SearchSession(model, FolderIndex(corpus), Sampling(eta=0.5, draws=2, shortlist=4), tell=told.append)
    session.update()
    assert len(told) == 1
    recordings, tokens = session.folder.read("model-a", frames=True), token_states(model, [text])
    expected = search(model, recordings, embed_texts(model, [text]), session._sampling, tokens=tokens, top=6)[0]
    assert [replace(hit, facts=None) for hit in session.by_text(text, 6).hits] == expected.hits
    way = session.trajectory(text)
    assert (way.x.shape, len(way.paths)) == ((10, 4), 4)
    cosine = recordings.vectors[way.windows] @ embed_texts(model, [text])[0]
    scores = cosine + model.reranker.fusion_weights["t2a"] * way.x0_hat[-1]
    shown = {hit.path: hit.score for hit in expected.hits}
    assert {path: shown[path] for path in way.paths} == pytest.approx(
        dict(zip(way.paths, scores.tolist(), strict=True)), abs=1e-5
    )
    with pytest.raises(ValueError, match="re-ranks by frames"):
        trajectory(model, recordings, embed_texts(model, [text])[0])


def test_frames_in_memory_do_as_well():
    model, waves = FramedRetriever(), [tone(hz, 1) for hz in (200, 400, 800)]
    vectors, frames = model.embed_with_frames(waves)
    recordings = Recordings(["a", "b", "c"], np.arange(3), np.arange(4), np.zeros((3, 2)), vectors, Ragged.of(frames, FRAME).take)
    query, tokens = embed_texts(model, ["400 Hz"]), token_states(model, ["400 Hz"])
    hits = search(model, recordings, query, tokens=tokens)[0].hits
    other = replace(recordings, frames=Ragged.of(frames[::-1], FRAME).take)
    assert [hit.score for hit in search(model, other, query, tokens=tokens)[0].hits] != [hit.score for hit in hits]
