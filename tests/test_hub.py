"""Models of the hub: fetched by the command line from a server that answers as the hub does, kept, completed, refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from command_line import DIFFATR, ROOT, Result, Terminal, start, typed
from hub_server import COMMIT, Hub, serving_hub
from safetensors.torch import load_file, save_file
from test_cli_disk import full
from tiny_models import TEXT_MODELS, make_clap, make_sentence_model

from diffatr_cli.pretrained import fetch
from diffatr_cli.pretrained.hub import model_folder

WEIGHTS = "model.safetensors"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving_hub() as hub:
        yield hub


@pytest.fixture(scope="session")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clap(tmp_path_factory.mktemp("models") / "clap")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    tiny.make_data(tmp_path / "sounds", sizes=(0, 0, 4))
    return tmp_path / "sounds" / "tones" / "test"


class Machine:
    """A machine of one's own: an empty cache, and the server in the hub's place."""

    def __init__(self, hub: Hub, root: Path) -> None:
        self.cache = root / "home" / "hub"
        self.model = self.cache / "models--owner--clap"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(root / "home"),
        }  # fmt: skip

    @property
    def snapshot(self) -> Path:
        return self.model / "snapshots" / COMMIT

    def run(self, *arguments: str | Path) -> Result:
        process = start([*DIFFATR, *arguments], env=self.environment)
        out, err = process.communicate(timeout=300)
        return Result(process.returncode, out, err)

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return start([*DIFFATR, *arguments], env=self.environment)


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    return Machine(hub, tmp_path)


@pytest.fixture
def here(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The same, for this process: the library takes the server's address from its constants, which it has read already."""
    from huggingface_hub import HfApi, constants

    address = machine.environment["HF_ENDPOINT"]
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", machine.environment["HF_HOME"])
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(HfApi.__init__, "__defaults__", (address, *(HfApi.__init__.__defaults__ or ())[1:]))
    return machine


def with_other_forms(folder: Path, model: Path) -> Path:
    """A model as many are on the hub: its weights in four forms, a card, pictures, and a folder of another library's."""
    shutil.copytree(model, folder)
    torch.save(load_file(model / WEIGHTS), folder / "pytorch_model.bin")
    for name in ("tf_model.h5", "flax_model.msgpack", "picture.png", "onnx/model.onnx", "onnx/config.json", "modeling_own.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not wanted")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


def sharded(folder: Path, model: Path) -> Path:
    """The same model with its weights in two files."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    halves = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for file, half in halves.items():
        save_file({name: tensors[name] for name in half}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, half in halves.items() for name in half}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.slow
def test_a_query_with_a_model_of_the_hub(machine: Machine, hub: Hub, clap: Path, clips: Path, tmp_path: Path) -> None:
    hub.models["owner/clap"] = with_other_forms(tmp_path / "published", clap)
    ask = ["query", "a low tone", "--corpus", clips, "--model", "owner/clap", "--json"]
    first = machine.run(*ask)
    assert first.code == 0, first.err
    wanted = [path.name for path in clap.iterdir()]
    assert hub.fetched() == sorted([*wanted, "README.md"])
    size = sum((tmp_path / "published" / name).stat().st_size for name in hub.fetched())
    assert f"fetching owner/clap from the hub: {size / 1e6:.1f} MB, kept in {machine.model}\n" in first.err
    document = json.loads(first.out)
    assert document["model"] == "owner/clap"
    assert len(document["results"]) == len(list(clips.glob("*.wav")))
    # The same as from the folder; and no request, not even whether there is something newer.
    assert [hit["path"] for hit in json.loads(machine.run(*ask[:-2], clap, "--json").out)["results"]] == [
        hit["path"] for hit in document["results"]
    ]
    hub.requests.clear()
    for more in ([], ["--offline"]):
        again = machine.run(*more, *ask)
        assert json.loads(again.out) == document
        assert "fetching" not in again.err
    assert hub.requests == []


@pytest.mark.parametrize("place", ["first", "last"])
def test_offline_asks_nobody(hub: Hub, machine: Machine, clap: Path, clips: Path, place: str) -> None:
    hub.models["owner/clap"] = clap
    command = ["index", clips, "--model", "owner/clap"]
    done = machine.run(*(["--offline", *command] if place == "first" else [*command, "--offline"]))
    assert done.code == 1
    assert done.err == (
        f"diffatr: --model: owner/clap is no local folder and not in {machine.cache}, and --offline was asked for. Connect once, "
        "or name a folder that holds it.\n"
    )
    assert hub.requests == []


def test_offline_downloads_no_data_either(tmp_path: Path) -> None:
    done = typed(["prepare", "clotho", "--data", tmp_path, "--offline"])
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "would be downloaded, and --offline was asked for" in done.err


@pytest.mark.parametrize("make", [sharded, with_other_forms])
def test_one_form_of_the_weights_is_fetched(here: Machine, hub: Hub, clap: Path, tmp_path: Path, make: object) -> None:
    from diffatr_cli.pretrained.transformers_models import load_audio_model

    hub.models["owner/clap"] = make(tmp_path / "published", clap)  # type: ignore[operator]
    encoder = load_audio_model("owner/clap", "model")
    kept = {path.name for path in here.snapshot.rglob("*") if path.is_file()}
    assert kept.isdisjoint({"pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "picture.png", "modeling_own.py"})
    assert not (here.snapshot / "onnx").exists()
    published = load_file(clap / WEIGHTS)
    state = encoder.model.state_dict()
    assert state
    assert all(torch.equal(value, published[name]) for name, value in state.items() if name in published)


def test_the_layers_beside_a_sentence_model_are_fetched(here: Machine, hub: Hub, tmp_path: Path) -> None:
    hub.models["owner/clap"] = make_sentence_model(tmp_path / "published")
    folder = model_folder("owner/clap", "text.encoder")
    for path in (tmp_path / "published").rglob("*"):
        assert path.is_dir() or (folder / path.relative_to(tmp_path / "published")).read_bytes() == path.read_bytes()


def test_weights_are_taken_up_where_a_try_was_cut_off(
    here: Machine, hub: Hub, clap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)  # what comes in beyond the last such is lost
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.models["owner/clap"] = clap
    hub.cut[WEIGHTS] = 70_000  # bytes of what is asked for, so that it takes several connections
    folder = model_folder("owner/clap", "--model")
    assert (folder / WEIGHTS).read_bytes() == (clap / WEIGHTS).read_bytes()
    starts = [each.start for each in hub.requests if each.method == "GET" and each.path.endswith(WEIGHTS)]
    assert starts == list(range(0, (clap / WEIGHTS).stat().st_size, 70_000))


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_ctrl_c_while_fetching_and_the_next_try(
    machine: Machine, hub: Hub, clap: Path, clips: Path, training: bool, tmp_path: Path
) -> None:
    """In `index` nothing is at stake yet; in `pretrain` the signal unwinds the work."""
    hub.models["owner/clap"] = tmp_path / "published"
    shutil.copytree(clap, tmp_path / "published")
    much = load_file(clap / WEIGHTS) | {"spare": torch.zeros(7_000_000)}
    save_file(much, tmp_path / "published" / WEIGHTS, {"format": "pt"})
    hub.stall[WEIGHTS] = 15_000_000  # the library writes 10 MiB at a time
    tiny.make_data(tmp_path / "data")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("data: {name: tones}\naudio: {encoder: owner/clap, perturb: false}\ntext: {encoder: owner/clap}\n")
    command = ["index", clips, "--model", "owner/clap"]
    if training:
        command = ["pretrain", recipe, "--data", tmp_path / "data", "--runs", tmp_path / "runs"]
    process = machine.start(*command)
    deadline = time.monotonic() + 120
    while not (parts := list(machine.model.glob("blobs/*.part"))) or parts[0].stat().st_size < 10_000:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[1:] == ["diffatr: interrupted. The same command continues where this one stopped."]
    there = parts[0].stat().st_size
    hub.stall.clear()
    hub.go_on.set()
    hub.requests.clear()
    refused = machine.run("index", clips, "--model", "owner/clap", "--offline")
    assert refused.code == 1
    assert f"owner/clap is only in part in {machine.cache}, and --offline was asked for." in refused.err
    assert refused.err.count("\n") == 1
    assert hub.requests == []
    done = machine.run("index", clips, "--model", "owner/clap", "--json")
    assert done.code == 0, done.err
    assert f", of which {there / 1e6:.1f} MB are there," in done.err
    assert [each.start for each in hub.requests if each.method == "GET" and each.path.endswith(WEIGHTS)] == [there]


def test_what_an_earlier_try_left_is_checked(here: Machine, hub: Hub, clap: Path) -> None:
    from diffatr_cli.errors import DiffATRError

    hub.models["owner/clap"] = clap
    hub.statuses[WEIGHTS] = (500, "")
    with pytest.raises(DiffATRError, match="the hub answered 500"):
        model_folder("owner/clap", "--model")
    (part,) = here.model.glob("blobs/*.part")
    part.write_bytes(b"\0" * 1000)  # not how the file begins
    hub.statuses.clear()
    with pytest.raises(DiffATRError, match=r"model\.safetensors of owner/clap did not arrive as the hub has it"):
        model_folder("owner/clap", "--model")
    assert (model_folder("owner/clap", "--model") / WEIGHTS).read_bytes() == (clap / WEIGHTS).read_bytes()


@pytest.mark.parametrize("lost", [WEIGHTS, "tokenizer.json", "preprocessor_config.json", "config.json", "trees", "refs"])
def test_a_snapshot_that_lacks_something_is_completed(
    here: Machine, hub: Hub, clap: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    from diffatr_cli.errors import DiffATRError

    hub.models["owner/clap"] = clap
    model_folder("owner/clap", "--model")
    if lost in ("trees", "refs"):  # as other programs leave it; and as nobody does
        shutil.rmtree(here.model / lost)
    else:
        (here.snapshot / lost).resolve().unlink()
        (here.snapshot / lost).unlink()
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if lost == "trees":
        assert model_folder("owner/clap", "--model") == here.snapshot
    else:
        with pytest.raises(DiffATRError, match="only in part"):
            model_folder("owner/clap", "--model")
    assert hub.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    folder = model_folder("owner/clap", "--model")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in clap.iterdir()
    }
    assert hub.fetched() == ([] if lost in ("trees", "refs") else [lost])


@pytest.mark.parametrize(
    ("name", "status", "code", "words"),
    [
        ("owner/nothing", None, 2, "the hub has no model of that name. Check the name."),
        ("owner/clap", (401, "RepoNotFound"), 2, "the hub has no model of that name. Check the name."),
        ("owner/clap", (403, "GatedRepo"), 1, "the hub gives owner/clap out only to whom its owners let in."),
        ("owner/clap", (500, ""), 1, "the hub answered 500. Try again later, or name a folder that holds it."),
        ("owner/clap", (429, ""), 1, "the hub answered 429. Try again later, or name a folder that holds it."),
        ("owner/a/b", None, 2, "is no folder. Name a folder that holds a model, or one of the hub as OWNER/NAME."),
        ("./clap", None, 2, "is no folder."),
        ("owner/what is this?", None, 2, "is neither a folder nor a name that the hub could have (OWNER/NAME)."),
        ("owner/cl--ap", None, 2, "is neither a folder nor a name that the hub could have (OWNER/NAME)."),
    ],
)
@pytest.mark.parametrize("at", ["api", "file"])
def test_refusals_are_a_sentence(
    here: Machine,
    monkeypatch: pytest.MonkeyPatch,
    hub: Hub,
    clap: Path,
    clips: Path,
    name: str,
    status: tuple[int, str] | None,
    code: int,
    words: str,
    at: str,
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the library tries again after a while
    hub.models["owner/clap"] = clap
    if status:
        hub.statuses["/api/models/" if at == "api" else "/resolve/"] = status
    done = typed(["index", clips, "--model", name])
    assert done.code == code
    assert words in done.err
    told = done.err.splitlines()[1:] if done.err.startswith("fetching") else done.err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("diffatr: --model: ")
    assert not (clips / ".diffatr").exists()


def test_a_model_without_weights_that_are_read_here(here: Machine, hub: Hub, tmp_path: Path, clips: Path) -> None:
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "config.json").write_text("{}")
    (tmp_path / "published" / "model.gguf").write_bytes(b"GGUF")
    hub.models["owner/clap"] = tmp_path / "published"
    done = typed(["index", clips, "--model", "owner/clap"])
    assert done.code == 2
    assert "owner/clap holds no model that is read here" in done.err
    assert hub.fetched() == []


def test_nobody_answers(here: Machine, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    monkeypatch.setattr(HfApi.__init__, "__defaults__", ("http://127.0.0.1:9", *(HfApi.__init__.__defaults__ or ())[1:]))
    done = typed(["index", clips, "--model", "owner/clap"])
    assert done.code == 1
    assert done.err == (
        "diffatr: --model: owner/clap is no local folder and could not be fetched from the hub (ConnectError). Connect once, or "
        "name a folder that holds it.\n"
    )


def test_a_disk_without_room(here: Machine, hub: Hub, clap: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.models["owner/clap"] = clap
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))  # type: ignore[attr-defined]
    done = typed(["index", clips, "--model", "owner/clap"])
    assert done.code == 1
    assert "owner/clap needs 0.0 GB and the disk of" in done.err
    assert "Free some, or set HF_HOME to a folder of another disk." in done.err
    assert hub.fetched() == []


def test_a_disk_that_fills_up(
    here: Machine, hub: Hub, clap: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.models["owner/clap"] = clap
    monkeypatch.setattr(fetch, "_check_room", lambda *_: None)
    with full(tmp_path / "disk"):
        monkeypatch.setenv("HF_HOME", str(tmp_path / "disk"))
        done = typed(["index", clips, "--model", "owner/clap"])
    assert done.code == 1
    assert "owner/clap cannot be kept in" in done.err
    assert "the disk is full." in done.err


def test_a_cache_that_cannot_be_written(
    here: Machine, hub: Hub, clap: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.models["owner/clap"] = clap
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    done = typed(["index", clips, "--model", "owner/clap"])
    assert done.code == 1
    assert "owner/clap cannot be kept in" in done.err
    assert "a file is where a folder should be." in done.err


def test_without_a_terminal_a_download_tells_of_itself_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    bar = fetch._lines("fetching owner/clap (MB)", 30.0, lambda: now[0])(total=600e6, initial=100e6, unit="B")
    with caplog.at_level("INFO", "diffatr_cli.pretrained.fetch"):
        for _ in range(10):
            now[0] += 7.0
            bar.update(10e6)
    assert [record.getMessage() for record in caplog.records] == [
        "fetching owner/clap (MB): 150 of 600 (25%), 1.43/s, 5 min 15 s left",
        "fetching owner/clap (MB): 200 of 600 (33%), 1.43/s, 4 min 40 s left",
    ]


@pytest.mark.slow
def test_on_a_terminal_the_weights_have_a_bar(machine: Machine, hub: Hub, clap: Path, clips: Path) -> None:
    hub.models["owner/clap"] = clap
    terminal = Terminal([*DIFFATR, "index", clips, "--model", "owner/clap"], env=machine.environment | {"TERM": "xterm-256color"})
    told = terminal.read()
    assert terminal.process.wait(60) == 0
    assert told.startswith("fetching owner/clap from the hub: 0.2 MB, kept in ")
    assert re.search(r"owner/clap model\.safetensors: 100%", told)
    assert "Reconstruct" not in told


def test_a_text_encoder_of_the_hub_is_named_with_its_field(here: Machine, hub: Hub, tmp_path: Path) -> None:
    from diffatr_cli.pretrained import load_text_encoder

    hub.models["owner/clap"] = TEXT_MODELS["roberta"](tmp_path / "published")
    assert load_text_encoder("owner/clap", "mean").features == 32
    with pytest.raises(Exception, match=r"^text\.encoder: owner/nothing is no local folder"):
        load_text_encoder("owner/nothing")
