"""The clips of a data set embedded by an engine's workers: the same figures and the same caches."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command_line import DIFFATR, ROOT, typed
from conftest import Workshop
from safetensors.numpy import load_file

from diffatr_cli.data.audio_error import AudioError
from diffatr_cli.data.manifest import load_dataset
from diffatr_cli.engines import InProcess, ItemLost, Work
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.evaluation.by_workers import Workers
from diffatr_cli.evaluation.evaluate import embed_by, evaluate
from diffatr_cli.evaluation.states import cached_frames
from diffatr_cli.model import load_retriever
from diffatr_cli.progress import silent
from diffatr_cli.types import DIRECTIONS


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """Runs with `tiny`, which has both phases, without what was embedded by it."""
    shutil.copytree(trained, tmp_path / "runs" / "tiny" / "seed-0", ignore=shutil.ignore_patterns("embeddings-*", "evaluation"))
    return tmp_path / "runs"


def caches(runs: Path) -> dict[str, dict[str, np.ndarray]]:
    return {path.name: load_file(path) for path in sorted((runs / "tiny/seed-0/pretrain").glob("embeddings-*"))}


def workers_of(run: Path, engine: InProcess | None = None) -> Workers:
    return Workers(engine or InProcess(), partial(load_retriever, run), load_retriever(run, "cpu").model_id)


def test_the_same_figures_and_caches(workshop: Workshop, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "here")
    found = {
        engine: evaluate("tones", "tones2", data=workshop.data, runs=folder, device="cpu", rivals=True, walk=True, engine=engine)
        for engine, folder in ((InProcess(), runs), (None, tmp_path / "here"))
    }
    there, here = found.values()
    assert there.to_json() == here.to_json()
    for direction in DIRECTIONS:
        for system in ("baseline", "diff", "qbnorm", "walk"):
            results = there.get(system, direction), here.get(system, direction)
            assert results[0] is not None
            assert results[0].per_seed == results[1].per_seed  # type: ignore[union-attr]
    made, expected = caches(runs), caches(tmp_path / "here")
    assert (
        made.keys()
        == expected.keys()
        == {f"embeddings-{name}.safetensors" for name in ("tones-train", "tones-val", "tones2-test")}
    )
    for name, tensors in expected.items():
        for key, values in tensors.items():
            np.testing.assert_allclose(made[name][key], values, atol=1e-6, err_msg=f"{name} {key}")


def test_frames(workshop: Workshop, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, dataset = runs / "tiny" / "seed-0", load_dataset(workshop.data, "tones2")
    model = load_retriever(run, "cpu")
    monkeypatch.setattr(type(model), "sees_frames", True)
    embed_by(workers_of(run), model, run, [(dataset, "test")])
    made = (run / "pretrain" / "frames-tones2-test.f16").read_bytes()
    shutil.copytree(runs, tmp_path / "here", ignore=shutil.ignore_patterns("frames-*"))
    expected = cached_frames(model, tmp_path / "here/tiny/seed-0", dataset, "test")
    frames = cached_frames(model, run, dataset, "test")  # found, not made
    assert (run / "pretrain" / "frames-tones2-test.f16").read_bytes() == made
    assert len(frames) == len(dataset.split("test"))
    assert np.array_equal(frames.lengths, expected.lengths)
    np.testing.assert_allclose(np.asarray(frames.values, np.float32), np.asarray(expected.values, np.float32), atol=2e-3)


def test_progress_tells_each_clip(workshop: Workshop, runs: Path) -> None:
    told: list[tuple[int, int, str]] = []
    dataset = load_dataset(workshop.data, "tones2")
    clips = dataset.split("val")
    found = workers_of(runs / "tiny" / "seed-0").embed(
        dataset, clips, "clips", "a note", lambda done, total, note: told.append((done, total, note))
    )
    assert [len(each) for each in found] == [1] * len(clips)
    assert told == [(number, len(clips), "a note") for number in range(1, len(clips) + 1)]


class Losing(InProcess):
    """Loses its third item."""

    def map(self, work: Work, items: object) -> object:  # type: ignore[override]
        for number, lane in enumerate(super().map(work, items)):  # type: ignore[arg-type]
            yield lost() if number == 2 else lane


def lost():
    raise ItemLost("the process that worked on it died twice")
    yield


def test_what_goes_wrong_is_told(workshop: Workshop, runs: Path, tmp_path: Path) -> None:
    run, dataset = runs / "tiny" / "seed-0", load_dataset(workshop.data, "tones2")
    clips = dataset.split("test")

    def embedded(workers: Workers, root: Path = dataset.root) -> list[object]:
        moved = load_dataset(root.parent, root.name)
        return list(workers.embed(moved, clips, "clips", "", silent))

    good = workers_of(run)
    with pytest.raises(DiffATRError, match=rf"{clips[2].path}: cannot be embedded \(the process that worked on it died twice\)"):
        embedded(workers_of(run, Losing()))
    with pytest.raises(UsageError, match="is another model there than here"):
        embedded(good._replace(model_id="another"))
    shutil.copytree(dataset.root, tmp_path / "data" / "tones2")
    (tmp_path / "data" / "tones2" / clips[3].path).unlink()
    with pytest.raises(AudioError, match=f"{Path(clips[3].path).name}.*missing"):
        embedded(good, tmp_path / "data" / "tones2")

    def vanishing(device: str) -> object:
        raise AssertionError("not loaded where there is no data set")

    moved = load_dataset(tmp_path / "data", "tones2")
    shutil.rmtree(tmp_path / "data" / "tones2")
    with pytest.raises(UsageError, match=r"tones2 is not to be seen there"):
        list(good._replace(load=vanishing).embed(moved, clips, "clips", "", silent))


def test_wrong_use(workshop: Workshop, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["evaluate", "--source", "tones", "--target", "tones2", "--data", workshop.data, "--runs", runs]
    result = typed([*asked, "--address", "auto"])
    assert (result.code, "--address is for --engine ray alone" in result.err) == (2, True)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    result = typed([*asked, "--engine", "ray"])
    assert (result.code, "without torchrun" in result.err) == (2, True)


@pytest.mark.slow
def test_by_workers_of_ray(workshop: Workshop, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    shutil.copytree(runs, tmp_path / "here")
    asked = [
        "evaluate",
        "--source",
        "tones",
        "--target",
        "tones2",
        "--data",
        workshop.data,
        "--device",
        "cpu",
        "--json",
        "--runs",
    ]
    here = typed([*asked, tmp_path / "here"])
    there = subprocess.run([*map(str, [*DIFFATR, *asked, runs, "--engine", "ray", "--workers", "2"])], capture_output=True)
    assert (there.returncode, here.code) == (0, 0), there.stderr
    assert json.loads(there.stdout) == json.loads(here.out)
    assert caches(runs).keys() == caches(tmp_path / "here").keys()
