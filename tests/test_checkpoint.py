"""Checkpoints and files survive what happens to them: kills, full disks, damage, foreign and hostile content."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from diffatr_cli.checkpoint import fill, load_state, load_weights, save_state, save_weights
from diffatr_cli.errors import DiffATRError
from diffatr_cli.files import replacing, write_text
from diffatr_cli.model import shipped_model
from diffatr_cli.runs import BEST


@pytest.mark.parametrize(
    "name",
    [
        "w",
        pytest.param(
            os.fsdecode(b"r\xffn"), marks=pytest.mark.skipif(sys.platform != "linux", reason="names of files are text there")
        ),
    ],
)
def test_weights_and_state_come_back(tmp_path: Path, name: str) -> None:
    tmp_path = tmp_path / name
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(3)}
    save_weights(tmp_path / "w.safetensors", tensors, {"seed": 1, "best": {"r1": 0.5}})
    loaded, facts = load_weights(tmp_path / "w.safetensors")
    assert facts == {"seed": 1, "best": {"r1": 0.5}}
    assert all(torch.equal(loaded[k], tensors[k]) for k in tensors)
    save_state(tmp_path / "s.pt", {"step": 3, "model": tensors})
    state = load_state(tmp_path / "s.pt")
    assert state is not None
    assert state["step"] == 3
    assert load_state(tmp_path / "none.pt") is None


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_text(path, "old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    def fill_disk() -> None:
        with replacing(tmp_path / "f"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiffATRError, match="disk is full") as failure:
        fill_disk()
    assert "\n" not in str(failure.value)
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(DiffATRError, match="no such checkpoint"):
        load_weights(path)
    save_weights(path, {"a": torch.zeros(1000)}, {})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DiffATRError, match="is damaged, or not a checkpoint"):
        load_weights(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(DiffATRError, match="not written by diffatr"):
        load_weights(path)


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(30, 4, generator=generator),
        "transposed": torch.randn(3, 5, generator=generator).T,
        "half": torch.randn(7, generator=generator).half(),
        "brain": torch.randn(5, generator=generator).bfloat16(),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
    }


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def save_and_load_weights(path: Path) -> Callable[[], bool]:
    tensors, facts = some_tensors(), {"fusion_weights": {"t2a": 0.7}, "encoders": "0123456789abcdef"}
    save_weights(path, tensors, facts)

    def is_as_saved() -> bool:
        got, told = load_weights(path)
        return equal(got, tensors) and told == facts

    return is_as_saved


def save_and_load_state(path: Path) -> Callable[[], bool]:
    state: dict[str, Any] = {"step": 7, "model": some_tensors(), "random": torch.arange(100)}
    save_state(path, state)

    def is_as_saved() -> bool:
        got = load_state(path)
        assert got is not None
        rest = got["step"] == 7 and torch.equal(got["random"], state["random"])
        return rest and equal(got["model"], state["model"])

    return is_as_saved


@pytest.mark.slow
@pytest.mark.parametrize("save", [save_and_load_weights, save_and_load_state])
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path, save: Callable[[Path], Callable[[], bool]]) -> None:
    path = tmp_path / "checkpoint"
    is_as_saved = save(path)
    assert is_as_saved()
    whole, refused = path.read_bytes(), 0
    tries = random.Random(0).sample(range(8 * len(whole)), 3000)
    for bit in tries:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            assert is_as_saved()
        except DiffATRError:
            refused += 1
    assert refused > len(tries) / 2


def test_weights_of_before_without_a_checksum_still_load(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(5.0)}
    save_file(tensors, tmp_path / "old", metadata={"diffatr": json.dumps({"seed": 3})})
    loaded, facts = load_weights(tmp_path / "old")
    assert torch.equal(loaded["a"], tensors["a"])
    assert facts == {"seed": 3}
    save_file(tensors, tmp_path / "old", metadata={"diffatr": '{"seed": '})
    with pytest.raises(DiffATRError, match="is damaged"):
        load_weights(tmp_path / "old")


def test_the_shipped_model_has_checksums() -> None:
    for phase in ("pretrain", "diffusion"):
        with safe_open(shipped_model() / phase / BEST, framework="pt") as file:
            assert "crc32" in file.metadata()


def test_the_checksum_is_of_names_shapes_types_and_facts_too(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}
    save_weights(tmp_path / "w", tensors, {"x": 1})
    whole = (tmp_path / "w").read_bytes()
    for old, new in ((b'"shape":[2,3]', b'"shape":[3,2]'), (b'"F32"', b'"I32"'), (b'"a":', b'"c":'), (b'x\\": 1', b'x\\": 2')):
        assert old in whole
        (tmp_path / "w").write_bytes(whole.replace(old, new))
        with pytest.raises(DiffATRError, match="is damaged"):
            load_weights(tmp_path / "w")


FULL = """
import sys
from pathlib import Path
import torch
from diffatr_cli.checkpoint import save_state, save_weights
from diffatr_cli.errors import DiffATRError
path, tensors = Path(sys.argv[1]) / "checkpoint", {"a": torch.zeros(1 << 20)}
for save in (lambda: save_weights(path, tensors, {}), lambda: save_state(path, tensors)):
    try:
        save()
    except DiffATRError as error:
        print(error)
"""


def test_a_full_disk_is_one_sentence_in_place_of_those_of_torch_and_safetensors(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}"
    if os.name == "nt" or subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no small disk can be made here")
    command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$0" -c "$1" {tmp_path}', sys.executable, FULL]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    lines = done.stdout.splitlines()
    assert (len(lines), done.stderr) == (2, "")
    assert all(line.startswith(f"{tmp_path / 'checkpoint'}: the disk is full") for line in lines)


class Hostile:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> object:
        return Path.touch, (Path(self.target),)


def test_a_hostile_state_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    (tmp_path / "last.pt").write_bytes(pickle.dumps(Hostile(str(trap))))
    with pytest.raises(DiffATRError, match="is damaged, or not a training state"):
        load_state(tmp_path / "last.pt")
    torch.save({"x": Hostile(str(trap))}, tmp_path / "last.pt")
    with pytest.raises(DiffATRError, match="is damaged, or not a training state"):
        load_state(tmp_path / "last.pt")
    assert not trap.exists()


def test_weights_of_another_model_name_what_differs(tmp_path: Path) -> None:
    with pytest.raises(DiffATRError, match=r"another recipe: .*weight"):
        fill(nn.Linear(2, 3), nn.Linear(3, 3).state_dict(), tmp_path / "x")
    with pytest.raises(DiffATRError, match="bias"):
        fill(nn.Linear(2, 3), nn.Linear(2, 3, bias=False).state_dict(), tmp_path / "x")
