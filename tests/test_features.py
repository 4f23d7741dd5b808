"""Vectors of one's own: from matrices and a table to a data set, both phases and evaluation; and everything that can be wrong."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Result, typed
from conftest import Workshop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from diffatr_cli.data.features import Source, prepare_features
from diffatr_cli.data.folder import deal
from diffatr_cli.data.manifest import MANIFEST, load_dataset
from diffatr_cli.data.vectors import FILE
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.evaluation.evaluate import cross_domain, evaluate
from diffatr_cli.recipe import load_recipe
from diffatr_cli.recipe_schema import Recipe
from diffatr_cli.runs import BEST, LAST
from diffatr_cli.training.pretrain import pretrain
from diffatr_cli.training.train_diffusion import train_diffusion

SIZES = {"train": 40, "val": 12, "test": 16}
TINY = (
    "model.dim=16", "pretrain.epochs=4", "pretrain.batch_size=16", "pretrain.lr=0.01", "pretrain.precision=fp32",
    "diffusion.epochs=2", "diffusion.hidden=16", "diffusion.steps=10", "diffusion.precision=fp32",
)  # fmt: skip


@dataclass(frozen=True)
class Matrices:
    """Random vectors of clips, two captions each, that share a latent; and the table that names them."""

    audio: np.ndarray
    text: np.ndarray
    rows: list[tuple[str, str, str]]
    """(file, caption, split) of each caption."""

    def write(self, folder: Path, name: str = "") -> Source:
        folder.mkdir(parents=True, exist_ok=True)
        source = Source(folder / f"{name}A.npy", folder / f"{name}T.npy", folder / f"{name}captions.csv")
        np.save(source.audio, self.audio)
        np.save(source.text, self.text)
        write_csv(source.captions, ("file", "caption", "split"), self.rows)
        return source


def write_csv(path: Path, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([heading, *rows])


def make(
    seed: int = 0,
    audio_size: int = 12,
    text_size: int = 10,
    shared: bool = False,
    sizes: dict[str, int] | None = None,
    noise: float = 0.2,
) -> Matrices:
    """Vectors of a latent of four numbers under two random maps, and noise; `shared`: under one map, as two towers have it."""
    rng = np.random.default_rng(seed)
    splits = [split for split, number in (sizes or SIZES).items() for _ in range(number)]
    latent = rng.normal(size=(len(splits), 4))
    maps = np.random.default_rng(99)  # the same for all data sets: one model made them
    of_audio, of_text = maps.normal(size=(4, audio_size)), maps.normal(size=(4, text_size))
    audio = latent @ of_audio + rng.normal(0, noise, (len(splits), audio_size))
    text = np.repeat(latent, 2, 0) @ (of_audio if shared else of_text)
    text += rng.normal(0, noise, text.shape)
    # Captions of one clip apart from one another, as one finds tables that were shuffled.
    order = rng.permutation(len(text))
    rows = [(f"{row // 2}.wav", f"caption {row} of {seed}", splits[row // 2]) for row in order]
    named = list(dict.fromkeys(row // 2 for row in order))
    return Matrices(audio[named].astype(np.float32), text[order].astype(np.float32), rows)


def recipe(*overrides: str) -> Recipe:
    return load_recipe("features", [*TINY, *overrides])


def typed_features(source: Source, data: Path, *more: str | Path) -> Result:
    given_files = ("--audio", source.audio, "--text", source.text, "--captions", source.captions)
    return typed(["prepare", "features", *given_files, "--data", data, *more])


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data/features`, `data/features2` of the same sizes, `data/wide` of others; `runs/features` of both phases on the first."""
    root = tmp_path_factory.mktemp("features")
    for name, matrices in {"features": make(), "features2": make(1), "wide": make(2, 14, 10)}.items():
        assert typed_features(matrices.write(root / "given" / name), root / "data", "--name", name).code == 0
    for name in ("features", "features2"):
        chosen = recipe(f"data.name={name}")
        for job in (pretrain, train_diffusion):
            job(name, chosen, data=root / "data", runs=root / "runs", device="cpu")
    return root


# --- the data set ----------------------------------------------------------------------------------------------------


def test_every_clip_and_caption_gets_its_vector(shop: Path) -> None:
    matrices, dataset = make(), load_dataset(shop / "data", "features")
    assert dataset.given_sizes == (12, 10)
    names = list(dict.fromkeys(name for name, _, _ in matrices.rows))
    of_caption = {caption: vector for (_, caption, _), vector in zip(matrices.rows, matrices.text, strict=True)}
    for split, number in SIZES.items():
        clips, vectors = dataset.split(split), dataset.given(split)
        assert vectors is not None
        assert len(clips) == number
        for clip, vector in zip(clips, vectors.audio, strict=True):
            assert np.array_equal(vector, matrices.audio[names.index(clip.clip_id.removeprefix(f"{split}/"))])
        texts = [caption for clip in clips for caption in clip.captions]
        assert np.array_equal(vectors.text, np.stack([of_caption[text] for text in texts]))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_all_kinds_of_numbers(tmp_path: Path, dtype: str, order: Any) -> None:
    source = make().write(tmp_path)
    kept = {}
    for name in ("audio", "text"):
        kept[name] = np.asarray(getattr(make(), name), dtype, order=order)
        np.save(getattr(source, name), kept[name])
    prepare_features(tmp_path / "data" / "set", source)
    dataset = load_dataset(tmp_path / "data", "set")
    assert dataset.vectors is not None
    assert dataset.vectors.audio.dtype == torch.float32
    # All clips are in one table and in the order of their first captions, so the matrix comes back as it was.
    assert np.array_equal(dataset.vectors.audio, kept["audio"].astype(np.float32))


def test_captions_of_one_row_take_several_vectors(tmp_path: Path) -> None:
    rows = [("b", "one", "", "two"), ("a", "", "three", ""), ("b", "four", "", "")]
    write_csv(tmp_path / "c.csv", ("clip", "caption_1", "caption_2", "caption_3"), rows)
    np.save(tmp_path / "A.npy", np.array([[1.0], [2]]))
    np.save(tmp_path / "T.npy", np.array([[1.0], [2], [3], [4]]))
    prepare_features(tmp_path / "data" / "set", Source(tmp_path / "A.npy", tmp_path / "T.npy", tmp_path / "c.csv"))
    dataset = load_dataset(tmp_path / "data", "set")
    assert dataset.vectors is not None
    assert [clip.captions for clip in dataset.clips] == [("one", "two", "four"), ("three",)]
    assert dataset.vectors.audio.tolist() == [[1], [2]]
    assert dataset.vectors.text.tolist() == [[1], [2], [4], [3]]


def test_json_tables(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps([{"clip": 7, "captions": ["x", "y"]}, {"file": "b", "caption": "z"}]))
    np.save(tmp_path / "A.npy", np.eye(2))
    np.save(tmp_path / "T.npy", np.eye(3))
    report = prepare_features(tmp_path / "set", Source(tmp_path / "A.npy", tmp_path / "T.npy", tmp_path / "c.json"))
    assert (report.clips, report.skipped, report.sizes) == (2, [], (2, 3))


def test_clips_without_a_split_are_dealt_as_a_folder_is(tmp_path: Path) -> None:
    matrices = make()
    source = matrices.write(tmp_path)
    write_csv(source.captions, ("file", "caption"), [row[:2] for row in matrices.rows])
    prepare_features(tmp_path / "data" / "set", source)
    dealt = deal(list(dict.fromkeys(name for name, _, _ in matrices.rows)))
    assert {clip.clip_id for clip in load_dataset(tmp_path / "data", "set").clips} == {f"{s}/{n}" for n, s in dealt.items()}


def test_a_table_for_each_split(tmp_path: Path) -> None:
    parts = {split: make(i, sizes={split: 10 + i}) for i, split in enumerate(("train", "val", "test"))}
    sources = {}
    for split, matrices in parts.items():
        sources[split] = matrices.write(tmp_path, split)
        write_csv(sources[split].captions, ("file", "caption"), [row[:2] for row in matrices.rows])
    more = [part for split in ("val", "test") for part in (f"--{split}", *sources[split])]
    told = typed_features(sources["train"], tmp_path / "data", "--name", "set", "--json", *more)
    assert told.code == 0, told.err
    assert {split: counts["clips"] for split, counts in json.loads(told.out)["splits"].items()} == {
        "train": 10,
        "val": 11,
        "test": 12,
    }
    dataset = load_dataset(tmp_path / "data", "set")
    for split, matrices in parts.items():
        vectors = dataset.given(split)
        assert vectors is not None
        assert np.array_equal(vectors.audio, matrices.audio)


def test_the_fingerprint_tells_vectors_apart(tmp_path: Path) -> None:
    def fingerprint(**changed: np.ndarray) -> str:
        matrices = make()
        source = Matrices(changed.get("audio", matrices.audio), changed.get("text", matrices.text), matrices.rows).write(tmp_path)
        prepare_features(tmp_path / "data" / "set", source)
        return load_dataset(tmp_path / "data", "set").fingerprint

    first, audio, text = fingerprint(), make().audio.copy(), make().text.copy()
    audio[3, 4] += 1e-3
    text[5, 6] += 1e-3
    assert len({first, fingerprint(audio=audio), fingerprint(text=text)}) == 3
    content = (tmp_path / "data" / "set" / FILE).read_bytes()
    assert fingerprint() == first
    assert (tmp_path / "data" / "set" / FILE).read_bytes() != content
    assert typed_features(make().write(tmp_path), tmp_path / "data", "--name", "set").code == 0  # once more
    assert load_dataset(tmp_path / "data", "set").fingerprint == first


def test_clips_with_one_vector_in_two_splits_are_told(tmp_path: Path) -> None:
    matrices = make()
    splits = {name: split for name, _, split in matrices.rows}
    names = list(splits)
    train, test = (next(i for i, name in enumerate(names) if splits[name] == split) for split in ("train", "test"))
    matrices.audio[train] = matrices.audio[test]
    assert "1 clip has exactly the vector of one of another split" in typed_features(matrices.write(tmp_path), tmp_path / "d").err


# --- training and evaluation -----------------------------------------------------------------------------------------


def recalls(audio: np.ndarray, text: np.ndarray, of: Sequence[int]) -> dict[str, dict[str, float]]:
    """R@1, R@5, R@10 in percent by the cosines of raw vectors; a clip is found by the best of its captions."""
    unit = [each.astype(np.float64) / np.linalg.norm(each.astype(np.float64), axis=1, keepdims=True) for each in (audio, text)]
    cosine, of = unit[1] @ unit[0].T, np.asarray(of)
    t2a = [int((row > row[clip]).sum()) for row, clip in zip(cosine, of, strict=True)]
    a2t = [int((column > column[of == clip].max()).sum()) for clip, column in enumerate(cosine.T)]
    return {
        direction: {f"r{k}": 100 * float(np.mean(np.array(ranks) < k)) for k in (1, 5, 10)}
        for direction, ranks in (("t2a", t2a), ("a2t", a2t))
    }


def baseline(result: Any) -> dict[str, dict[str, float]]:
    return {
        system.direction: {key: system.per_seed[0][key] for key in ("r1", "r5", "r10")}
        for system in result.systems
        if system.system == "baseline"
    }


def of_split(matrices: Matrices, split: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The raw matrices of a split, in any order, and the clip of each caption."""
    names = list(dict.fromkeys(name for name, _, _ in matrices.rows))
    mine = [name for name in names if next(s for n, _, s in matrices.rows if n == name) == split]
    rows = [row for row, (_, _, s) in enumerate(matrices.rows) if s == split]
    return (
        matrices.audio[[names.index(name) for name in mine]],
        matrices.text[rows],
        [mine.index(matrices.rows[row][0]) for row in rows],
    )


def test_without_heads_the_vectors_are_the_shared_space(tmp_path: Path) -> None:
    matrices = make(text_size=12, shared=True, noise=1.5)
    assert typed_features(matrices.write(tmp_path), tmp_path / "data").code == 0
    chosen = recipe("model.heads=none", "model.dim=12")

    def train() -> Path:
        return pretrain("none", chosen, data=tmp_path / "data", runs=tmp_path / "runs", device="cpu").folder

    folder = train()
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = recalls(*of_split(matrices, "val"))
    assert len(log) == 1
    for direction, recall in expected.items():
        assert {key: log[0][f"{direction}_{key}"] for key in recall} == pytest.approx(recall)
    assert not load_file(folder / BEST)
    kept = (folder / "run.json").read_bytes(), (folder / BEST).read_bytes()
    assert train() == folder
    assert kept == ((folder / "run.json").read_bytes(), (folder / BEST).read_bytes())  # a finished run finishes at once

    result = evaluate("features", "features", data=tmp_path / "data", runs=tmp_path / "runs", device="cpu")
    expected = recalls(*of_split(matrices, "test"))
    assert 10 < expected["t2a"]["r1"] < 100
    assert baseline(result) == {d: pytest.approx(each) for d, each in expected.items()}
    train_diffusion("none", chosen, data=tmp_path / "data", runs=tmp_path / "runs", device="cpu")
    both = evaluate("features", "features", data=tmp_path / "data", runs=tmp_path / "runs", device="cpu")
    assert {system.system for system in both.systems} == {"baseline", "diff"}
    assert baseline(both) == baseline(result)


def test_heads_find_what_the_vectors_share(shop: Path) -> None:
    log = [json.loads(line) for line in (shop / "runs/features/seed-0/pretrain/metrics.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    test = baseline(evaluate("features", "features", data=shop / "data", runs=shop / "runs", recipe="features", device="cpu"))
    assert test["t2a"]["r1"] > 3 * 100 / SIZES["test"]  # three times chance


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model.strategy=gen",),
        ("pretrain.items=clips", "pretrain.captions_per_clip=2", "pretrain.by_length=true"),
        ("pretrain.head_steps=5", "pretrain.head_batch=8"),
        ("data.same_captions=positives",),
    ],
)
def test_a_killed_run_resumes_to_the_same_result(shop: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    chosen = recipe("pretrain.checkpoint_minutes=1e-9", "pretrain.epochs=2", *overrides)

    class Killed(Exception):
        pass

    def run(runs: Path, die_at: int | None = None) -> Path:
        def progress(done: int, total: int, note: str) -> None:
            if note.startswith("epoch") and done == die_at:
                raise Killed

        return pretrain("r", chosen, data=shop / "data", runs=runs, seed=3, device="cpu", progress=progress).folder

    whole = run(tmp_path / "a")
    for die_at in (1, 3):
        with pytest.raises(Killed):
            run(tmp_path / "b", die_at)
    resumed = run(tmp_path / "b")
    assert (whole / "metrics.jsonl").read_text() == (resumed / "metrics.jsonl").read_text()
    for name in (BEST, LAST):
        one, other = load_file(whole / name), load_file(resumed / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_is_judged_on_another_set_of_the_same_sizes(shop: Path) -> None:
    there, back = cross_domain(("features", "features2"), data=shop / "data", runs=shop / "runs", device="cpu")
    assert [(each.source, each.target, each.model) for each in (there, back)] == [
        ("features", "features2", "features"),
        ("features2", "features", "features"),
    ]
    assert baseline(there)["t2a"]["r10"] > 62.5  # chance; one model made both sets
    told = typed(["cross-domain", "features", "features2", "--data", shop / "data", "--runs", shop / "runs", "--json"])
    assert told.code == 0, told.err
    assert json.loads(told.out)[0]["target"] == "features2"


# --- what does not fit together --------------------------------------------------------------------------------------


def refused(told: Result, *words: str) -> None:
    """One sentence or two on one line, and exit code 2."""
    assert told.code == 2, told.err
    assert told.out == ""
    assert len(told.err.strip().splitlines()) == 1
    assert all(word in told.err for word in words), told.err


def test_sets_of_other_sizes_or_with_audio_are_refused(shop: Path, workshop: Workshop, trained: Path) -> None:
    options = ["--data", shop / "data", "--runs", shop / "runs"]
    refused(typed(["evaluate", "--source", "features", "--target", "wide", *options]), "wide", "14", "12", "10")
    for path in workshop.data.iterdir():
        if not (shop / "data" / path.name).exists():
            (shop / "data" / path.name).symlink_to(path)
    refused(typed(["evaluate", "--source", "features", "--target", "tones", *options]), "tones", "audio", "prepare features")
    runs = ["--data", shop / "data", "--runs", workshop.runs]
    refused(typed(["evaluate", "--source", "tones", "--target", "features", *runs]), "features", "hears sounds")
    refused(typed(["pretrain", "features", "data.name=tones", "--name", "x", *options]), "audio.encoder", "tones", "data.name")
    refused(typed(["pretrain", str(workshop.recipe_file), "data.name=features", *options]), "audio.encoder", "features")
    refused(typed(["pretrain", "features", "model.heads=none", "--name", "x", *options]), "model.heads", "12", "10")
    assert sorted(path.name for path in (shop / "runs").iterdir()) == ["features", "features2"]


def test_vectors_that_changed_under_a_run_are_noticed(tmp_path: Path) -> None:
    assert typed_features(make().write(tmp_path), tmp_path / "data").code == 0
    options = ["--data", tmp_path / "data", "--runs", tmp_path / "runs"]
    assert typed(["pretrain", "features", *TINY, *options]).code == 0
    assert typed_features(make(audio_size=14).write(tmp_path), tmp_path / "data").code == 0
    refused(typed(["pretrain", "features", *TINY, *options]), "other data")
    refused(typed(["train-diffusion", "features", *options]), "14", "12")


@pytest.mark.parametrize("command", ["query", "index", "serve"])
def test_folders_are_no_matter_for_it(shop: Path, tmp_path: Path, command: str) -> None:
    run = shop / "runs" / "features" / "seed-0"
    words = {"query": ["rain", "--corpus", tmp_path], "index": [tmp_path], "serve": ["--corpus", tmp_path, "--no-open"]}
    for named in (("--run", run), ("--runs", shop / "runs"), ("--model", run)):
        refused(typed([command, *words[command], *named]), "seed-0", "hears no sounds")
    assert not list(tmp_path.iterdir())


def test_from_python_it_is_refused_too(shop: Path) -> None:
    from diffatr_cli import load_model

    with pytest.raises(UsageError, match="hears no sounds"):
        load_model(shop / "runs" / "features" / "seed-0")


# --- bad input -------------------------------------------------------------------------------------------------------


def test_bad_rows_cost_themselves(tmp_path: Path) -> None:
    matrices = make()
    names = list(dict.fromkeys(name for name, _, _ in matrices.rows))
    audio, text = matrices.audio.astype(np.float64), matrices.text.astype(np.float64)
    audio[0, 3], audio[1], audio[2, 0], audio[3] = np.nan, 0, -np.inf, 1e200
    bad_text = [row for row, (name, _, _) in enumerate(matrices.rows) if name not in names[:4]][:3]
    text[bad_text[0]], text[bad_text[1], 0], text[bad_text[2]] = 0, np.nan, 1e-40
    source = Matrices(audio, text, matrices.rows).write(tmp_path)
    told = typed_features(source, tmp_path / "data", "--json")
    assert told.code == 0, told.err
    skipped = {skip["what"]: skip["reason"] for skip in json.loads(told.out)["skipped"]}
    assert skipped == {
        "A.npy[0]": "NaN or infinity in its vector",
        "A.npy[1]": "its vector is zero",
        "A.npy[2]": "NaN or infinity in its vector",
        "A.npy[3]": "its vector is too long for float32",
        f"T.npy[{bad_text[0]}]": "its vector is zero",
        f"T.npy[{bad_text[1]}]": "NaN or infinity in its vector",
        f"T.npy[{bad_text[2]}]": "its vector is zero",
    }
    dataset = load_dataset(tmp_path / "data", "features")
    assert dataset.vectors is not None
    assert {clip.clip_id.split("/")[1] for clip in dataset.clips} == set(names[4:])
    captions = [caption for clip in dataset.clips for caption in clip.captions]
    good = {c: row for row, (n, c, _) in enumerate(matrices.rows) if n not in names[:4] and row not in bad_text}
    assert sorted(captions) == sorted(good)
    assert np.array_equal(dataset.vectors.text, np.stack([matrices.text[good[caption]] for caption in captions]))
    assert np.array_equal(dataset.vectors.audio, matrices.audio[4:])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_bad_the_rest_keeps_its_vectors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Each vector is the number of its row, so that a caption can be followed to where it came from."""
    folder = tmp_path_factory.mktemp("any")
    names = data.draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12))
    cells = [data.draw(st.lists(st.sampled_from(["", "x", "y", "nan", "!"]), min_size=2, max_size=2)) for _ in names]
    splits = [data.draw(st.sampled_from(["", "train", "test", "elsewhere"])) for _ in names]
    write_csv(
        folder / "c.csv",
        ("clip", "caption_1", "caption_2", "split"),
        [(n, *c, s) for n, c, s in zip(names, cells, splits, strict=True)],
    )
    given_captions = [(n, cell) for n, row in zip(names, cells, strict=True) for cell in row if cell]
    order = list(dict.fromkeys(names))
    audio, text = np.arange(1.0, 1 + len(order))[:, None], np.arange(1.0, 1 + len(given_captions))[:, None]
    bad_audio = data.draw(st.sets(st.integers(0, len(order) - 1)))
    bad_text = data.draw(st.sets(st.integers(0, len(given_captions) - 1))) if given_captions else set()
    audio[list(bad_audio)], text[list(bad_text)] = np.nan, 0
    np.save(folder / "A.npy", audio)
    np.save(folder / "T.npy", text)
    source = Source(folder / "A.npy", folder / "T.npy", folder / "c.csv")
    if not given_captions:
        with pytest.raises(UsageError, match="no captions"):
            prepare_features(folder / "data" / "set", source)
        return
    report = prepare_features(folder / "data" / "set", source)
    if not report.clips:
        assert not (folder / "data" / "set").exists()
        return
    dataset = load_dataset(folder / "data", "set")
    assert dataset.vectors is not None
    vectors = iter(dataset.vectors.text[:, 0].tolist())
    for clip, vector in zip(dataset.clips, dataset.vectors.audio[:, 0].tolist(), strict=True):
        assert clip.clip_id.split("/")[1] == order[int(vector) - 1]
        assert int(vector) - 1 not in bad_audio
        for caption in clip.captions:
            row = int(next(vectors)) - 1
            assert given_captions[row] == (order[int(vector) - 1], caption)
            assert row not in bad_text
            assert caption in "xy"
    assert next(vectors, None) is None


def test_validation_splits_of_other_sizes_do_not_choose(shop: Path, tmp_path: Path) -> None:
    chosen = recipe("evaluation.domains=[wide]")
    encoders = shop / "runs" / "features" / "seed-0"
    with pytest.raises(UsageError, match=r"wide: holds vectors of 14 .* trained on 12 and 10"):
        train_diffusion("both", chosen, data=shop / "data", runs=tmp_path, device="cpu", encoders=encoders)


def test_nothing_usable_is_a_failure(tmp_path: Path) -> None:
    matrices = make()
    told = typed_features(Matrices(matrices.audio * np.nan, matrices.text, matrices.rows).write(tmp_path), tmp_path / "data")
    assert told.code == 1
    assert "nothing was prepared" in told.err
    assert not (tmp_path / "data" / "features").exists()


def test_nothing_usable_leaves_what_was_there(tmp_path: Path) -> None:
    assert typed_features(make().write(tmp_path), tmp_path / "data").code == 0
    before = load_dataset(tmp_path / "data", "features").fingerprint
    matrices = make()
    assert typed_features(Matrices(matrices.audio, 0 * matrices.text, matrices.rows).write(tmp_path), tmp_path / "data").code == 1
    assert load_dataset(tmp_path / "data", "features").fingerprint == before


def _pickle(path: Path) -> None:
    np.save(path, np.array([[{"a": 1}]], object), allow_pickle=True)


def _archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=np.ones((3, 3)))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _cut_in_heading(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:30])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "objects": (_pickle, "holds Python objects"),
    "archive": (_archive, "numpy.savez"),
    "cut": (_cut, "damaged or cut off"),
    "cut in its heading": (_cut_in_heading, "damaged or cut off"),
    "empty": (lambda path: path.write_bytes(b""), "is no .npy file"),
    "text": (lambda path: path.write_text("1,2,3\n"), "is no .npy file"),
    "missing": (lambda path: path.unlink(), "cannot be read"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), ""),
    "integers": (lambda path: np.save(path, np.ones((136, 4), int)), "int64"),
    "booleans": (lambda path: np.save(path, np.ones((136, 4), bool)), "bool"),
    "complex": (lambda path: np.save(path, np.ones((136, 4), complex)), "complex128"),
    "long doubles": (lambda path: np.save(path, np.ones((136, 4), np.longdouble)), np.longdouble(1).dtype.name),
    "one row": (lambda path: np.save(path, np.ones(136)), "an array of 136,"),
    "a number": (lambda path: np.save(path, np.float32(1)), "one number"),
    "tokens": (lambda path: np.save(path, np.ones((136, 2, 4))), "136 x 2 x 4"),
    "no columns": (lambda path: np.save(path, np.ones((136, 0))), "136 x 0"),
    "no rows": (lambda path: np.save(path, np.ones((0, 4))), "has 0 rows"),
    "rows lacking": (lambda path: np.save(path, np.load(path)[:-1]), "Give it a row for each"),
    "too many rows": (lambda path: np.save(path, np.load(path).repeat(2, 0)), "Give it a row for each"),
}  # fmt: skip


@pytest.mark.parametrize("which", ["audio", "text"])
@pytest.mark.parametrize("bad", list(BAD))
def test_what_is_no_matrix_is_refused(tmp_path: Path, bad: str, which: str) -> None:
    spoil, words = BAD[bad]
    source = make().write(tmp_path)
    spoil(getattr(source, which))
    refused(typed_features(source, tmp_path / "data"), getattr(source, which).name, words)
    assert not (tmp_path / "data" / "features").exists()


def test_numbers_of_rows_are_said(tmp_path: Path) -> None:
    source = make().write(tmp_path)
    np.save(source.text, make().text[:100])
    refused(typed_features(source, tmp_path / "data"), "T.npy", "100 rows", "136 captions", "captions.csv")
    source = make().write(tmp_path)
    np.save(source.audio, make().text)
    refused(typed_features(source, tmp_path / "data"), "A.npy", "136 rows", "68 different clips", "captions.csv")


def test_rows_that_cannot_be_read_are_said_where_numbers_differ(tmp_path: Path) -> None:
    source = make().write(tmp_path)
    lines = source.captions.read_text().splitlines()
    lines[5] = "0.wav"
    source.captions.write_text("\n".join(lines))
    refused(typed_features(source, tmp_path / "data"), "136 rows", "135 captions, besides 1 row", "captions.csv:6")
    np.save(source.text, np.delete(make().text, 4, 0))  # a reader that passed over that row too
    told = typed_features(source, tmp_path / "data", "--json")
    assert told.code == 0, told.err
    assert [skip["what"] for skip in json.loads(told.out)["skipped"]] == ["captions.csv:6"]


@pytest.mark.parametrize(("which", "sizes"), [("audio", (14, 10)), ("text", (12, 9))])
def test_sizes_that_differ_between_splits(tmp_path: Path, which: str, sizes: tuple[int, int]) -> None:
    source, other = make().write(tmp_path), make(1, *sizes).write(tmp_path, "val")
    told = typed_features(source, tmp_path / "data", "--val", *other)
    refused(told, getattr(source, which).name, getattr(other, which).name, str(sizes[which == "text"]))


def test_a_table_without_columns_or_captions(tmp_path: Path) -> None:
    source = make().write(tmp_path)
    source.captions.write_text("name,caption\na,b\n")
    told = typed_features(source, tmp_path / "data")
    assert (told.code, "no column clip, file" in told.err) == (1, True)
    source.captions.write_text("clip,caption\n")
    refused(typed_features(source, tmp_path / "data"), "captions.csv", "no captions")


def test_another_kind_of_data_set_stays(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(workshop.data)
    refused(typed_features(make().write(tmp_path), tmp_path / "data", "--name", "tones"), "prepare tones", "--name")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_to_a_heading_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    from diffatr_cli.data.features import open_matrix

    path = tmp_path_factory.mktemp("npy") / "A.npy"
    np.save(path, np.ones((3, 4), np.float32))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(100, len(content)))]))
    try:
        matrix = open_matrix(path)
    except UsageError as error:
        told = str(error)
    else:
        told = f"{path}: {matrix.dtype.kind}"
    assert told.startswith(f"{path}: ")
    assert told.endswith(": f") or len(told) > len(str(path)) + 20


@pytest.mark.parametrize("place", [0, 0.3, 0.9])
def test_damage_to_the_vectors_is_noticed(tmp_path: Path, place: float) -> None:
    assert typed_features(make().write(tmp_path), tmp_path / "data").code == 0
    path = tmp_path / "data" / "features" / FILE
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DiffATRError, match="prepare features"):
        load_dataset(tmp_path / "data", "features")
    path.unlink()
    with pytest.raises(DiffATRError, match="missing"):
        load_dataset(tmp_path / "data", "features")
    (path.parent / f".{FILE}.123.tmp").write_bytes(b"left by a kill")
    assert typed_features(make().write(tmp_path), tmp_path / "data").code == 0
    assert load_dataset(tmp_path / "data", "features").vectors is not None
    assert {each.name for each in (tmp_path / "data" / "features").iterdir()} == {MANIFEST, FILE, ".prepare.lock"}


def test_a_missing_set_names_its_command(tmp_path: Path) -> None:
    told = typed(["pretrain", "features", "--data", tmp_path / "data", "--runs", tmp_path / "runs"])
    assert told.code == 1
    assert "diffatr prepare features --audio" in told.err


def test_a_model_that_hears_is_not_calibrated_on_vectors_of_another(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    result = typed(["calibrate", "--model", "diffatr-small", "--data", shop / "data" / "features"])
    assert (result.code, result.out) == (2, "")
    assert "holds vectors of a model run elsewhere, and diffatr-small hears sounds" in result.err
    assert not list(tmp_path.iterdir())
