"""The package as it is installed: a wheel, in an environment of its own, away from the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what it is made of, and nothing else: what is built leaves nothing in the repository."""
    work = tmp_path_factory.mktemp("wheel")
    for name in ("diffatr_cli", "recipes"):
        shutil.copytree(ROOT / name, work / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, work / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", work, work / "source"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode and "Could not find a version" in done.stderr:
        pytest.skip("no network for what builds it")
    assert done.returncode == 0, done.stderr
    (made,) = work.glob("*.whl")
    return made


@pytest.mark.slow
def test_all_that_the_package_needs_is_in_the_wheel(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = (path for path in (ROOT / "diffatr_cli").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert {path.relative_to(ROOT).as_posix() for path in package} <= inside
    assert {f"diffatr_cli/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")} <= inside
    assert any(name.endswith("/licenses/LICENSE") for name in inside)
    for part in ("models/diffatr-small/kinds.csv", "models/diffatr-small/pretrain/best.safetensors", "web/page"):
        assert any(part in name for name in inside), part
    assert not [name for name in inside if name.startswith(("tests/", "examples/", "benchmarks/"))]


@pytest.mark.slow
def test_it_runs_from_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """Its libraries are those that are there: what is tested is what the wheel brings."""
    place = tmp_path / "venv"
    venv.create(place, with_pip=False)
    program, python = (place / ("Scripts" if os.name == "nt" else "bin") / name for name in ("diffatr", "python"))
    own = Path(
        subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], **CAPTURED).stdout.strip()
    )
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel]
    done = subprocess.run(list(map(str, install)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (own / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")  # after its own
    shutil.copytree(ROOT / "examples" / "clips", tmp_path / "clips", ignore=shutil.ignore_patterns(".diffatr"))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [program, "--offline", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    where = "import diffatr_cli; print(diffatr_cli.__file__)"
    found = subprocess.run([python, "-c", where], cwd=tmp_path, env=environment, **CAPTURED)
    assert Path(found.stdout.strip()).is_relative_to(place)
    assert "query" in run("--help").stdout
    assert run().stdout.startswith("Three things to try")
    done = run("query", "a dog barking", "--corpus", "clips", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["verdict"] == "found"
    assert "dog" in document["results"][0]["path"]
    assert document["index"]["files"] == len(list((tmp_path / "clips").glob("*.ogg")))
    assert run("models", "--json").returncode == 0


CAPTURED: dict[str, bool] = {"capture_output": True, "text": True, "check": True}
