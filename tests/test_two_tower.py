"""A CLAP serves a folder as it is: index, query, calibrate, models, and from Python."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from command_line import typed
from conftest import Workshop
from serving import client_of
from tiny import make_data
from tiny_models import AUDIO_MODELS, TEXT_MODELS, make_ast, make_clap

from diffatr_cli import load_model
from diffatr_cli.calibrations import calibrations_folder
from diffatr_cli.core.calibration import distribution_of_cosines, score_features
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.session import SearchSession
from diffatr_cli.data.audio import load_audio
from diffatr_cli.errors import UsageError
from diffatr_cli.two_tower import load_any, load_two_tower


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clap(tmp_path_factory.mktemp("models") / "clap")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, rate, seconds in (("a.wav", 48_000, 0.5), ("b.flac", 44_100, 1.0), ("long.wav", 16_000, 2.7)):
        soundfile.write(folder / name, 0.1 * rng.standard_normal(round(rate * seconds)), rate)
    return folder


def answer(*arguments: Any) -> Any:
    result = typed([*map(str, arguments), "--json"])
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_a_search_is_the_librarys_cosine(clap: Path, clips: Path) -> None:
    """Files of any rate are brought to the model's own, long ones cut into windows of its own, every half of one."""
    import torch
    from transformers import ClapFeatureExtractor, ClapModel, RobertaTokenizerFast

    document = answer("query", "a high tone", "--corpus", clips, "--model", clap)
    assert document["model"] == str(clap)
    assert document["present"] is None
    model, extractor = ClapModel.from_pretrained(clap).eval(), ClapFeatureExtractor.from_pretrained(clap)
    tokens = RobertaTokenizerFast.from_pretrained(clap)("a high tone", return_tensors="pt")
    want = {}
    with torch.no_grad():
        text = model.get_text_features(**tokens).pooler_output[0]
        for path in clips.glob("*.[wf]*"):
            wave = load_audio(path, rate=16_000)
            starts = [0] if len(wave) <= 16_000 else [*range(0, len(wave) - 16_000, 8_000), len(wave) - 16_000]
            sounds = [wave[start : start + 16_000] for start in starts]
            inputs = [extractor(sound, sampling_rate=16_000, return_tensors="pt")["input_features"] for sound in sounds]
            longer = torch.zeros(len(inputs), 1, dtype=torch.bool)
            vectors = model.get_audio_features(input_features=torch.cat(inputs), is_longer=longer).pooler_output
            scores = (vectors @ text).tolist()
            want[str(path)] = (max(scores), starts[int(np.argmax(scores))] / 16_000)
    assert {hit["path"] for hit in document["results"]} == set(want)
    for hit in document["results"]:
        score, start = want[hit["path"]]
        assert hit["score"] == pytest.approx(score, abs=2e-3)  # the index keeps half precision
        assert hit["start"] == pytest.approx(start)


def test_scores_without_a_calibration_say_what_they_are(clap: Path, clips: Path) -> None:
    result = typed(["query", "a tone", "--corpus", clips, "--model", clap])
    assert result.code == 0
    assert "no probabilities" in result.err
    assert "%" not in result.out


def test_the_index_keeps_models_apart(clap: Path, clips: Path, trained: Path, tmp_path: Path) -> None:
    first = answer("index", clips, "--model", clap)
    assert (first["files"], first["embedded"]) == (3, 3)
    assert first["windows"] == 2 + 5
    assert answer("index", clips, "--run", trained)["embedded"] == 3
    assert answer("index", clips, "--model", clap)["embedded"] == 0
    other = shutil.copytree(clap, tmp_path / "other")
    assert answer("index", clips, "--model", other)["embedded"] == 0  # the same weights under another name
    settings = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(settings | {"frequency_min": 300}))
    assert answer("index", clips, "--model", other)["embedded"] == 3  # which hears otherwise
    make_clap(tmp_path / "wider", features=24)
    assert answer("index", clips, "--model", tmp_path / "wider")["embedded"] == 3


def test_a_sound_of_some_samples_is_one_for_models_of_every_rate(clap: Path, clips: Path, trained: Path) -> None:
    """Four samples at 192 kHz are less than half a sample at 16 kHz; what one model finds does not depend on the other's."""
    tiny = clips / "tiny.wav"
    soundfile.write(tiny, np.full(4, 0.1, np.float32), 192_000, subtype="FLOAT")
    for model in ("--model", clap), ("--run", trained):
        report = answer("index", clips, *model)
        assert (report["files"], report["skipped"]) == (4, [])
        assert len(answer("query", "--audio", tiny, "--corpus", clips, *model)["results"]) == 4
    model = load_model(clap, "cpu")
    for sound in (tiny, np.full(1, 0.1, np.float32)):
        assert np.linalg.norm(model.embed_audio(sound, rate=192_000)) == pytest.approx(1, abs=1e-5)


def test_calibrating_makes_probabilities_and_presence(clap: Path, clips: Path, tmp_path: Path) -> None:
    make_data(tmp_path / "data", "many", sizes=(1, 40, 1))
    result = answer("calibrate", "--model", clap, "--data", tmp_path / "data" / "many")
    assert (result["data"], result["split"], result["clips"]) == ("many", "val", 40)
    assert Path(result["kept"]).parent == calibrations_folder()
    fitted = result["calibration"]
    assert all(fitted.values())
    found = answer("query", "a high tone", "--corpus", clips, "--model", clap)
    model = load_two_tower(str(clap), "cpu")
    assert model.calibration is None  # only `load_any` knows what the user fitted
    vectors = model.embed_audio([load_audio(path, rate=16_000)[:16_000] for path in sorted(clips.glob("?.*"))])
    cosine = vectors @ model.embed_text(["a high tone"])[0]
    by_file = {Path(hit["path"]).name: hit["score"] for hit in found["results"]}
    fit = fitted["text_to_audio"]
    for name, value in zip(("a.wav", "b.flac"), cosine.tolist(), strict=True):
        features = score_features(np.array([value]), found["present"], words=3, candidates=2)[0]
        worth = 1 / (1 + np.exp(-(np.array(fit["weights"]) @ features + fit["bias"])))
        assert by_file[name] == pytest.approx(min(worth, found["present"]), abs=2e-3)  # never above that anything is there
    assert 0 <= found["present"] <= 1
    assert found["verdict"] == ("found" if found["present"] >= fitted["told_below"] else "absent")
    assert found["familiarity"] is None  # nobody knows what it learnt from
    assert "no probabilities" not in typed(["query", "a tone", "--corpus", clips, "--model", clap]).err


def test_a_distribution_of_cosines() -> None:
    (weights,) = distribution_of_cosines(np.array([0.5, 0.43, -1.0]))
    assert weights.sum() == pytest.approx(1)
    assert weights[0] / weights[1] == pytest.approx(np.e)


def test_models_lists_what_is_there(clap: Path, trained: Path, workshop: Workshop, tmp_path: Path) -> None:
    def cached(name: str, source: Path, card: str = "") -> None:
        folder = tmp_path / "hub" / ("models--" + name.replace("/", "--"))
        snapshot = shutil.copytree(source, folder / "snapshots" / "abc")
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
        if card:
            (snapshot / "README.md").write_text(card)

    kinds: dict[str, str] = {}
    cached("lab/clap", clap, "---\nlanguage:\n- en\n- de\nlicense: apache-2.0\n---\n# A model\n")
    for kind, makers in (("sound", AUDIO_MODELS), ("text", TEXT_MODELS)):
        for name, make in makers.items():
            if name != "clap":
                cached(f"lab/{name}", make(tmp_path / "made" / name))
                kinds[f"lab/{name}"] = kind
    cached("lab/broken", clap)
    (tmp_path / "hub" / "models--lab--broken" / "snapshots" / "abc" / "model.safetensors").unlink()

    def damaged(name: str, path: str, content: bytes) -> None:
        cached(name, clap)
        target = tmp_path / "hub" / ("models--" + name.replace("/", "--")) / path
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)

    damaged("lab/letters", "refs/main", b"\xff\xfe")
    damaged("lab/list", "snapshots/abc/config.json", b"[1]")
    for number, weight_map in enumerate(("[1]", '{"a": 1}', "null")):
        damaged(f"lab/index{number}", "snapshots/abc/model.safetensors.index.json", f'{{"weight_map": {weight_map}}}'.encode())
        (tmp_path / "hub" / f"models--lab--index{number}" / "snapshots" / "abc" / "model.safetensors").unlink()
    runs = shutil.copytree(workshop.runs, tmp_path / "runs")
    told = typed(["models", "--runs", runs])
    assert (told.code, told.err.count("note: passed over ")) == (0, 4)
    rows = {row["name"]: row for row in answer("models", "--runs", runs)}
    run = str(runs / "tiny" / "seed-0")
    assert set(rows) == {"diffatr-small", run, "lab/clap", *kinds}
    assert {name: rows[name]["kind"] for name in kinds} == kinds
    assert rows["lab/clap"] | {"megabytes": 0} == {
        "name": "lab/clap", "kind": "two towers", "megabytes": 0, "languages": "en, de", "licence": "apache-2.0",
        "calibrated": False,
    }  # fmt: skip
    assert rows["lab/ast"]["calibrated"] is None
    assert rows["diffatr-small"]["calibrated"]
    assert rows["diffatr-small"]["megabytes"] == pytest.approx(19.7, abs=0.1)
    make_data(tmp_path / "data", "many", sizes=(1, 20, 1))
    answer("calibrate", "--model", "lab/clap", "--data", tmp_path / "data" / "many")
    assert {row["name"]: row for row in answer("models", "--runs", runs)}["lab/clap"]["calibrated"]
    assert "lab/clap" in typed(["models", "--runs", runs]).out


def test_a_damaged_cache_of_the_hub_is_told_in_a_sentence(clap: Path, clips: Path, tmp_path: Path) -> None:
    model = tmp_path / "hub" / "models--lab--clap"
    shutil.copytree(clap, model / "snapshots" / "abc")
    for path, content, code in (
        ("refs/main", b"\xff\xfe", 1),
        ("refs/main", b"abc", 0),
        ("trees/abc.json", b'{"files": [1]}', 0),
    ):
        (model / path).parent.mkdir(exist_ok=True)
        (model / path).write_bytes(content)
        result = typed(["query", "x", "--corpus", clips, "--model", "lab/clap", "--offline"])
        assert result.code == code, result.err
        assert "unexpected" not in result.err


def test_a_calibration_of_other_features_is_told(clap: Path, clips: Path, tmp_path: Path) -> None:
    make_data(tmp_path / "data", "many", sizes=(1, 20, 1))
    kept = Path(answer("calibrate", "--model", clap, "--data", tmp_path / "data" / "many")["kept"])
    document = json.loads(kept.read_text())
    document["calibration"]["presence"]["weights"].append(0.5)
    kept.write_text(json.dumps(document))
    result = typed(["query", "x", "--corpus", clips, "--model", clap])
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"diffatr: {kept}: not a readable calibration")


def test_a_folder_of_runs_names_one(clips: Path, trained: Path) -> None:
    for folder in (trained.parent, trained.parents[1]):
        result = typed(["query", "x", "--corpus", clips, "--model", folder])
        assert result.code == 2
        assert f"Name a run in it, such as {folder}" in result.err


def test_from_python(clap: Path, clips: Path) -> None:
    model = load_model(clap, "cpu")
    assert model.dim == 16
    a, long = (load_audio(clips / name, rate=32_000) for name in ("a.wav", "long.wav"))
    by_path, by_array = model.embed_audio([clips / "a.wav", clips / "long.wav"]), model.embed_audio([a, long], rate=32_000)
    np.testing.assert_allclose(np.linalg.norm(by_path, axis=1), 1, atol=1e-5)
    assert (by_path * by_array).sum(1).min() > 0.99
    ranked = model.rank("a low tone", [clips / "a.wav", clips / "b.flac"])
    assert {each.index for each in ranked} == {0, 1}
    assert len(model.search(clips, "rain")) == 3
    texts = ["rain", "a tone"]
    cosine = model.embed_text(texts) @ by_path[0]
    described = model.rank(clips / "a.wav", texts)
    assert [each.index for each in described] == np.argsort(-cosine).tolist()
    assert [each.score for each in described] == pytest.approx(sorted(cosine, reverse=True), abs=1e-3)  # vectors of 16 bits


@pytest.mark.parametrize("rate", [8_000, 48_000, 192_000])
def test_the_page_finds_a_dropped_sound_of_any_rate(rate: int, clap: Path, tmp_path: Path) -> None:
    samples = np.arange(rate // 2)
    noise, tone = np.random.default_rng(rate).standard_normal(len(samples)), np.sin(2 * np.pi * 440 / rate * samples)
    (tmp_path / "sounds").mkdir()
    for name, sound in (("noise.wav", noise), ("tone.wav", tone)):
        soundfile.write(tmp_path / "sounds" / name, 0.1 * sound, rate)
    session = SearchSession(load_any(clap, "cpu"), FolderIndex(tmp_path / "sounds"))
    session.update()
    client = client_of(session)
    for path in (tmp_path / "sounds").glob("*.wav"):
        document = client.post("/api/sound", params={"name": path.name}, content=path.read_bytes()).json()
        assert document["hits"][0]["name"] == path.name
        assert document["hits"][0]["score"] == pytest.approx(1, abs=2e-3)
    assert not client.get("/api/state").json()["diffuses"]
    refused = client.get("/api/trajectory", params={"q": "a tone"})
    assert (refused.status_code, "no diffusion phase" in refused.json()["error"]) == (400, True)


def test_what_is_no_two_tower_model(clips: Path, tmp_path: Path) -> None:
    ast = make_ast(tmp_path / "ast")
    for name, error, words in (
        (str(ast), UsageError, "has no towers of sound and of text"),
        ("./nowhere", UsageError, "is no folder"),
        (str(clips), UsageError, r"holds no run \(no pretrain/\) and no model \(no config.json\)"),
    ):
        with pytest.raises(error, match=words):
            load_any(name, "cpu")
    result = typed(["query", "x", "--corpus", clips, "--model", ast])
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    result = typed(["query", "x", "--corpus", clips, "--model", ast, "--run", clips])
    assert result.code == 2
    assert "exclude each other" in result.err
