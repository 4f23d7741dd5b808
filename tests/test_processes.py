"""Several processes that do one job: what they learn together is what one learns alone, and none of them is lost in silence."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import Workshop
from safetensors.torch import load_file
from tiny import make_bert, make_data, tiny_fields

from diffatr_cli import launched, processes
from diffatr_cli.errors import UsageError
from diffatr_cli.evaluation.evaluate import evaluate
from diffatr_cli.training.pretrain import pretrain
from diffatr_cli.training.train_diffusion import train_diffusion

TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
NO_AUGMENTATION = ("audio.dropout=0", "audio.spec_augment=false", "pretrain.precision=fp32")


def free_port() -> str:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return str(place.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    root = Path(__file__).parents[1]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), **more}


def together(workshop: Workshop, runs: Path, *arguments: str, count: int = 2) -> subprocess.CompletedProcess[str]:
    """A command of two processes, as a user starts it."""
    command = [*TOGETHER[:-1], str(count), "--master-port", free_port(), "-m", "diffatr_cli", *arguments]
    where = ["--data", str(workshop.data), "--runs", str(runs), "--device", "cpu"]
    return subprocess.run([*command, *where], env=environment(), capture_output=True, text=True, timeout=300, check=False)


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What our processes say on stderr, without what torchrun adds."""
    return [line for line in done.stderr.splitlines() if line.startswith(("diffatr:", "kept in", "note:"))]


def test_a_process_alone_is_all_of_them() -> None:
    values = torch.randn(5, 3, requires_grad=True)
    assert processes.count() == 1
    assert processes.is_first()
    assert processes.share(5) == slice(0, 5)
    assert processes.gathered(values) is values
    assert processes.summed(values) is values
    assert processes.from_first("this") == "this"
    assert processes.tells("anything")
    assert launched.launcher() == ["diffatr"]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("number", [8, 9, 15, 100])
def test_shares_are_all_there_is_and_none_is_empty(monkeypatch: pytest.MonkeyPatch, count: int, number: int) -> None:
    monkeypatch.setattr(processes, "count", lambda: count)
    shares = []
    for rank in range(count):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        shares.append(range(number)[processes.share(number)])
    assert [item for each in shares for item in each] == list(range(number))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_too_few_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: 4)
    with pytest.raises(UsageError, match=r"^3 of a batch cannot be shared by 4 processes\. Start fewer"):
        processes.share(3)


def test_batch_norm_alone_is_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own arithmetic, which one process never uses, against torch's."""
    torch.manual_seed(0)
    ours, theirs = processes.JointBatchNorm2d(4), torch.nn.BatchNorm2d(4)
    with torch.no_grad():
        theirs.weight.normal_()
        theirs.bias.normal_()
    ours.load_state_dict(theirs.state_dict())
    one, other = (torch.randn(6, 4, 5, 3).mul_(20).sub_(30).requires_grad_() for _ in range(2))
    with torch.no_grad():
        other.copy_(one)
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "summed", lambda values: values)
    for _ in range(2):
        a, b = ours(one), theirs(other)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(a)
    (a * weights).sum().backward()
    (b * weights).sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("text.finetune=true",),
        ("pretrain.items=clips", "pretrain.captions_per_clip=2", "pretrain.batch_size=7"),
        ("model.strategy=gen", "data.same_captions=positives"),
        ("pretrain.compose=0.6", "data.seconds=0.6"),  # no padding: equal values in it meet ReLU's corner together
        ("diffusion.candidates=16", "diffusion.negatives=nearest", "diffusion.objective=discriminative"),
        ("diffusion.candidates=16", "diffusion.negatives=shared_nearest", "diffusion.conditioning=frames"),
    ],
)
def test_gradients_are_those_of_the_joint_batch(workshop: Workshop, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Of both phases, to 1e-5; so are the statistics of batch norm."""
    script = [sys.executable, str(Path(__file__).with_name("joint_step.py")), str(tmp_path / "step"), str(workshop.data)]
    command = [*script, str(workshop.recipe_file), *NO_AUGMENTATION, *overrides]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    started = [subprocess.Popen(command, env=environment())]
    started += [subprocess.Popen(command, env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **job)) for rank in range(2)]
    assert [each.wait(timeout=120) for each in started] == [0, 0, 0]
    alone, first, second = (torch.load(f"{tmp_path}/step.{name}", weights_only=True) for name in ("alone", "0", "1"))
    for phase, expected in alone.items():
        assert len(expected["gradients"]) > 5
        for joint in (first[phase], second[phase]):
            torch.testing.assert_close(joint, expected, rtol=1e-5, atol=1e-5)
        assert max(float(gradient.abs().max()) for gradient in expected["gradients"].values()) > 1e-3
        assert all(torch.equal(first[phase]["gradients"][key], second[phase]["gradients"][key]) for key in expected["gradients"])


@pytest.mark.slow
def test_two_processes_make_one_run(workshop: Workshop, tmp_path: Path) -> None:
    """They learn, write once, speak once, and what they made can be used by one, and evaluated by one as by two."""
    runs, recipe = tmp_path / "runs", str(workshop.recipe_file)
    done = together(workshop, runs, "pretrain", recipe, "pretrain.head_steps=3", "--json")
    assert done.returncode == 0, done.stderr
    assert lines(done) == [f"kept in {runs / 'tiny' / 'seed-0' / 'pretrain'}"]
    assert json.loads(done.stdout)["best"]["score"] > 150
    record = json.loads((runs / "tiny" / "seed-0" / "pretrain" / "run.json").read_text())
    assert [start["processes"] for start in record["starts"]] == [2]
    assert record["resume"].startswith("torchrun --nproc-per-node 2 -m diffatr_cli pretrain ")
    second = together(workshop, runs, "train-diffusion", recipe, "pretrain.head_steps=3")
    assert second.returncode == 0, second.stderr
    assert len(lines(second)) == 1

    results = tmp_path / "results"
    arguments = ["evaluate", "--source", "tones", "--target", "tones", "--rivals", "--json"]
    evaluated = together(workshop, runs, *arguments, "--export", str(results))
    assert evaluated.returncode == 0, evaluated.stderr
    found = json.loads(evaluated.stdout)
    alone = evaluate("tones", "tones", data=workshop.data, runs=runs, rivals=True, device="cpu").to_json()
    assert found["systems"] == json.loads(json.dumps(alone["systems"]))
    assert list(results.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("job", ["pretrain", "train-diffusion"])
def test_a_run_of_two_goes_on_by_two_alone(workshop: Workshop, tmp_path: Path, job: str) -> None:
    runs, recipe = tmp_path / "runs", workshop.recipe()
    train = pretrain if job == "pretrain" else train_diffusion
    if job == "train-diffusion":
        pretrain("tiny", recipe, data=workshop.data, runs=runs, device="cpu")
    phase = runs / "tiny" / "seed-0" / ("pretrain" if job == "pretrain" else "diffusion")
    section = phase.name
    begun = together(workshop, runs, job, str(workshop.recipe_file), f"{section}.epochs=2")
    assert begun.returncode == 0, begun.stderr
    begun_recipe = workshop.recipe(f"{section}.epochs=2")
    before = (phase / "last.safetensors").read_bytes()
    assert train("tiny", begun_recipe, data=workshop.data, runs=runs, device="cpu").best  # nothing is left to train
    facts = json.loads((phase / "run.json").read_text())
    (phase / "run.json").write_text(json.dumps(facts | {"recipe": recipe.model_dump(mode="json")}))
    with pytest.raises(UsageError, match=r"was begun by 2 processes, and here are 1\. Go on with as many \(torchrun"):
        train("tiny", recipe, data=workshop.data, runs=runs, device="cpu")
    assert (phase / "last.safetensors").read_bytes() == before


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun started, in the order of their ranks."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False)
    ranks = {}
    for pid in map(int, found.stdout.split()):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks |= {int(each[5:]): pid for each in variables if each.startswith(b"RANK=")}
    return [pid for _, pid in sorted(ranks.items())]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to tell the processes apart")
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_dies_ends_the_job_and_costs_nothing(workshop: Workshop, tmp_path: Path, killed: int) -> None:
    """Killed in the midst of it and begun again, two processes come to the result of two that nobody disturbed."""
    changes = ["pretrain.epochs=30", "pretrain.checkpoint_minutes=1e-9"]

    def start(runs: Path) -> subprocess.Popen[str]:
        command = [*TOGETHER, "--master-port", free_port(), "-m", "diffatr_cli", "pretrain", str(workshop.recipe_file), *changes]
        where: Sequence[str] = ["--data", str(workshop.data), "--runs", str(runs), "--device", "cpu"]
        return subprocess.Popen([*command, *where], env=environment(), stdout=-1, stderr=-1, text=True)

    whole = start(tmp_path / "whole")
    _, told = whole.communicate(timeout=300)
    assert whole.returncode == 0, told

    cut = start(tmp_path / "cut")
    folder = tmp_path / "cut" / "tiny" / "seed-0" / "pretrain"
    log = folder / "metrics.jsonl"
    wait_for(lambda: log.is_file() and len(log.read_text().splitlines()) >= 3, cut)
    os.kill(children(cut)[killed], signal.SIGKILL)
    _, told = cut.communicate(timeout=120)
    assert cut.returncode != 0
    (line,) = (line for line in told.splitlines() if line.startswith("diffatr:"))
    lost = "diffatr: one of the 2 processes of this job has ended. The same command continues from the last checkpoint."
    assert line in (
        lost,
        "diffatr: ended by SIGTERM. The same command continues where this one stopped.",
    )
    assert len(log.read_text().splitlines()) < 30

    again = start(tmp_path / "cut")
    _, told = again.communicate(timeout=300)
    assert again.returncode == 0, told
    for name in ("best.safetensors", "metrics.jsonl"):
        expected, got = ((tmp_path / each / "tiny" / "seed-0" / "pretrain" / name) for each in ("whole", "cut"))
        if name.endswith("jsonl"):
            assert got.read_text() == expected.read_text()
        else:
            ours_now, theirs = load_file(got), load_file(expected)
            assert ours_now.keys() == theirs.keys()
            assert all(torch.equal(ours_now[key], theirs[key]) for key in theirs)


@pytest.mark.slow
def test_what_is_wrong_is_said_once(workshop: Workshop, tmp_path: Path) -> None:
    query = together(workshop, tmp_path, "query", "a tone")
    assert query.returncode != 0
    assert lines(query) == ["diffatr: query is the work of one process. Start it without torchrun."]
    bad = together(workshop, tmp_path, "pretrain", str(workshop.recipe_file), "pretrain.epoch=3")
    assert len(lines(bad)) == 1
    assert "pretrain.epoch: unknown field" in lines(bad)[0]
    small = together(workshop, tmp_path, "pretrain", str(workshop.recipe_file), "pretrain.batch_size=2", count=3)
    assert lines(small) == ["diffatr: 2 of a batch cannot be shared by 3 processes. Start fewer, or raise batch_size."]
    missing = together(workshop, tmp_path, "evaluate", "--source", "nothing", "--target", "tones")
    assert len(lines(missing)) == 1


@pytest.mark.slow
def test_a_table_by_two_processes(tmp_path: Path) -> None:
    """Trained and filled by two, each run once; told by one."""
    make_data(tmp_path / "data", "scenes-audiocaps")
    make_bert(tmp_path / "bert")
    fields = [*tiny_fields(tmp_path), "pretrain.epochs=1", "diffusion.epochs=1"]
    where = ["--data-folder", str(tmp_path / "data"), "--runs", str(tmp_path / "runs"), "--device", "cpu", "--json"]
    command = [*TOGETHER, "--master-port", free_port(), "-m", "diffatr_cli", "reproduce", "5", *fields, "--data", "scenes"]
    done = subprocess.run(
        [*command, "--seeds", "0", *where], env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    (table,) = json.loads(done.stdout)
    assert [row["label"] for row in table["rows"]] == ["Gen", "Dis", "Gen+Dis"]
    begun = [line for line in done.stderr.splitlines() if "epochs are there" in line]
    assert len(begun) == len(set(begun)) == 3
    for record in (tmp_path / "runs").rglob("run.json"):
        assert [start["processes"] for start in json.loads(record.read_text())["starts"]] == [2]
