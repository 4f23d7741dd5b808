"""One direction of imports, and a command line that starts without the heavy libraries."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Workshop

PACKAGE = Path(__file__).parents[1] / "diffatr_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "transformers", "numba", "pyarrow", "lancedb", "resampy", "soxr", "soundfile", "scipy", "pandas", "numpy"}

# What each room may import. Files at the top of the package are rooms of their own, lowest first.
FOUNDATION = {
    "types",
    "errors",
    "printable",
    "files",
    "progress",
    "collection",
    "network",
    "launched",
    "interrupts",
    "engines",
    "worker_process",
    "__init__",
}
OTHERS = {"device", "processes", "pretrained", "encoders"}
SHARED = FOUNDATION | OTHERS | {"recipe_schema", "recipe", "runs", "checkpoint", "phase_two", "model"}
MODELS = SHARED | {"core", "calibrations", "two_tower"}
ALLOWED: dict[str, set[str]] = {
    **dict.fromkeys(FOUNDATION, FOUNDATION),
    "core": {"types"},
    "data": FOUNDATION | {"core"},
    "recipe_schema": FOUNDATION,
    "recipe_yaml": FOUNDATION,
    "recipe": FOUNDATION | {"recipe_schema", "recipe_yaml"},
    "runs": FOUNDATION | {"recipe_schema", "recipe"},
    "checkpoint": FOUNDATION,
    "device": FOUNDATION,
    "cluster": FOUNDATION,
    "processes": FOUNDATION,
    "pretrained": FOUNDATION | {"core"},
    "encoders": FOUNDATION | {"core", "recipe_schema", "device", "pretrained"},
    "phase_two": FOUNDATION | {"core", "recipe_schema", "runs", "checkpoint"},
    "calibrations": FOUNDATION | {"core"},
    "two_tower": MODELS,
    "models_there": MODELS,
    "model": SHARED | {"core"},
    "evaluation": SHARED | {"core", "data"},
    "training": SHARED | {"core", "data", "evaluation", "calibrations"},
    "reproduce": SHARED | {"core", "data", "evaluation", "training"},
    "corpus": SHARED | {"core", "data"},
    "web": FOUNDATION | {"core", "data", "corpus"},
    "report": FOUNDATION | {"evaluation", "reproduce"},
    "api": MODELS | {"data", "corpus"},
    "cli": MODELS | {"cluster", "models_there", "data", "evaluation", "training", "reproduce", "corpus", "web", "report"},
    "__main__": {"cli", "errors"},
}
REEXPORTS = {
    (("core", "panns"), "diffatr_cli.pretrained.load_panns"),
    *((("__init__",), f"diffatr_cli.{name}") for name in ("api", "api.Model", "api.Ranked", "api.load_model")),
}
"""The looks upward: names that other programs call, loaded when they do."""


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """The absolute names of all modules that a file imports, at module level or inside functions, with the line."""
    package = ("diffatr_cli", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            # `from . import x` may import the module x; the name is checked either way.
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def room(parts: tuple[str, ...]) -> str:
    """The room of a module, by its name's parts after `diffatr_cli`."""
    return parts[0] if parts and parts[0] in ALLOWED else "__init__"  # names of the package itself, such as __version__


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_lies_below_them(path: Path) -> None:
    here = path.relative_to(PACKAGE).with_suffix("").parts
    assert here[0] in ALLOWED, f"{here[0]}: a new room needs a row in ALLOWED, and in CONTRIBUTING.md"
    upward = []
    for name, line in imported(path):
        parts = tuple(name.split("."))
        if parts[0] != "diffatr_cli" or (here, name) in REEXPORTS:
            continue
        if room(parts[1:]) not in ALLOWED[here[0]] | {here[0]}:
            upward.append(f"line {line}: {name}")
    assert not upward


def test_rooms_have_one_order() -> None:
    """No two rooms may import each other, directly or through others."""
    below = {name: set(others) - {name} for name, others in ALLOWED.items() if name not in FOUNDATION}
    while below:
        lowest = {name for name, others in below.items() if not others & below.keys()}
        assert lowest, f"these go in a circle: {sorted(below)}"
        below = {name: others for name, others in below.items() if name not in lowest}


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").rglob("*.py")), ids=lambda path: path.name)
def test_the_core_knows_no_files_and_no_console(path: Path) -> None:
    forbidden = {"yaml", "rich", "typer", "click", "soundfile", "pyarrow", "pydantic", "httpx", "lancedb", "resampy"}
    forbidden |= {"pathlib", "io", "tempfile", "shutil", "json", "huggingface_hub", "safetensors"}
    assert {name.partition(".")[0] for name, _ in imported(path)}.isdisjoint(forbidden)


def test_the_walk_sees_every_form_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own eyes: a file in `core` that looks upward in five ways."""
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    (tmp_path / "core").mkdir()
    path = tmp_path / "core/x.py"
    path.write_text(
        "import a.b\nfrom .. import cli\nfrom ..data import y\nfrom .z import w\ndef f():\n    from diffatr_cli.report import t\n"
    )
    assert [name for name, _ in imported(path)] == [
        "a.b",
        "diffatr_cli.cli",
        "diffatr_cli.data.y",
        "diffatr_cli.core.z.w",
        "diffatr_cli.report.t",
    ]
    assert [room(parts) for parts in (("cli",), ("data", "audio"), ("model",), ("__version__",))] == [
        "cli",
        "data",
        "model",
        "__init__",
    ]


def loaded_after(code: str) -> set[str]:
    """The top-level modules that a fresh process holds after running the code."""
    report = "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    script = f"import sys\n{code}\n{report}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("module", ["", ".recipe", ".report.tables", ".errors"])
def test_recipes_and_tables_load_nothing_heavy(module: str) -> None:
    loaded = loaded_after(f"import diffatr_cli{module}")
    assert "diffatr_cli" in loaded
    assert loaded.isdisjoint(HEAVY)


HELP = """
import runpy
sys.argv = ["diffatr", "--help"]
try:
    runpy.run_module("diffatr_cli", run_name="__main__")
except SystemExit as end:
    assert not end.code
"""


@pytest.mark.skipif(not (PACKAGE / "cli/main.py").is_file(), reason="there is no command line yet")
def test_help_loads_nothing_heavy() -> None:
    loaded = loaded_after(HELP)
    assert "typer" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_making_a_data_set_does_without_torch(tmp_path: Path) -> None:
    prepare = f"""
from pathlib import Path
from diffatr_cli.data.synthetic import prepare_synthetic
import diffatr_cli.data.audiocaps, diffatr_cli.data.clotho, diffatr_cli.data.features, diffatr_cli.data.folder
assert prepare_synthetic(Path({str(tmp_path / "set")!r}), 1, 1, 1).clips == 3
"""
    loaded = loaded_after(prepare)
    assert "pyarrow" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "lancedb", "numba", "scipy"})  # pyarrow loads pandas where it is


@pytest.mark.skipif(not (PACKAGE / "cli/main.py").is_file(), reason="there is no command line yet")
@pytest.mark.parametrize("shipped", [False, True])
def test_a_query_of_an_unchanged_folder_loads_only_what_it_needs(
    workshop: Workshop, trained: Path, tmp_path: Path, shipped: bool
) -> None:
    shutil.copytree(workshop.data / "tones" / "test", tmp_path / "clips")
    model = [] if shipped else ["--run", str(trained)]
    query = f"""
import runpy
sys.argv = ["diffatr", "query", "a low tone", "--corpus", {str(tmp_path / "clips")!r}, *{model!r}, "--json"]
try:
    runpy.run_module("diffatr_cli", run_name="__main__")
except SystemExit as end:
    assert not end.code
"""
    first = loaded_after(query)
    assert "lancedb" in first
    assert first.isdisjoint({"transformers", "huggingface_hub"})
    loaded = loaded_after(query)
    assert "torch" in loaded
    slow = {"transformers", "huggingface_hub", "lancedb", "pyarrow", "numba", "resampy", "scipy", "sympy", "pandas"}
    assert loaded.isdisjoint(slow)
