"""Checkpoints and files survive what happens to them: kills, full disks, damage, foreign and hostile content."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diffatr_cli.checkpoint import fill, load_state, load_weights, save_state, save_weights
from diffatr_cli.errors import DiffATRError
from diffatr_cli.files import replacing, write_text


def test_weights_and_state_come_back(tmp_path: Path) -> None:
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
    with pytest.raises(DiffATRError, match="not a readable checkpoint"):
        load_weights(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(DiffATRError, match="not written by diffatr"):
        load_weights(path)


class Hostile:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> object:
        return Path.touch, (Path(self.target),)


def test_a_hostile_state_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    (tmp_path / "last.pt").write_bytes(pickle.dumps(Hostile(str(trap))))
    with pytest.raises(DiffATRError, match="not a readable training state"):
        load_state(tmp_path / "last.pt")
    torch.save({"x": Hostile(str(trap))}, tmp_path / "last.pt")
    with pytest.raises(DiffATRError, match="not a readable training state"):
        load_state(tmp_path / "last.pt")
    assert not trap.exists()


def test_weights_of_another_model_name_what_differs(tmp_path: Path) -> None:
    with pytest.raises(DiffATRError, match=r"another recipe: .*weight"):
        fill(nn.Linear(2, 3), nn.Linear(3, 3).state_dict(), tmp_path / "x")
    with pytest.raises(DiffATRError, match="bias"):
        fill(nn.Linear(2, 3), nn.Linear(2, 3, bias=False).state_dict(), tmp_path / "x")
