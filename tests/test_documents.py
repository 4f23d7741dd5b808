"""The documents say what is there: the README's tree and commands, CONTRIBUTING's rooms, and links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from diffatr_cli.cli.main import app
from diffatr_cli.recipe import SECTIONS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diffatr_cli"
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def tree() -> str:
    found = re.search(r"```\ndiffatr_cli/\n(.*?)```", README, re.DOTALL)
    assert found
    return found[1]


def test_the_readmes_tree_is_that_of_the_package() -> None:
    listing = tree().partition("\nrecipes/")[0]
    folders = {
        path.name for path in PACKAGE.iterdir() if path.is_dir() and not path.name.startswith("__") and any(path.iterdir())
    }
    files = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    core = {path.name for path in (PACKAGE / "core").glob("*.py") if not path.name.startswith("__")}
    assert set(re.findall(r"^  (\w+)/", listing, re.MULTILINE)) == folders
    assert set(re.findall(r"\b\w+\.py\b", listing)) == files | core


def test_the_rooms_of_contributing_are_those_of_the_test_of_imports() -> None:
    from test_imports import ALLOWED

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)/?`", row)} == set(ALLOWED) - {"__init__", "__main__"}


def test_the_readme_names_every_command() -> None:
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    table = README[README.index("## Commands") : README.index("## The data")]
    assert set(re.findall(r"^\| `([\w-]+)", table, re.MULTILINE)) == commands


def test_the_notes_name_fields_that_there_are_and_every_field_of_the_method() -> None:
    text = (ROOT / "docs" / "paper-notes.md").read_text(encoding="utf-8")
    fields = {f"{section}.{name}" for section, names in SECTIONS.items() for name in names}
    named = set(re.findall(rf"`((?:{'|'.join(SECTIONS)})\.\w+)`", text))
    assert named <= fields
    obvious = {"data.name", "audio.hop", "audio.channels", "audio.members"}  # explained in the schema; no choice about the paper
    assert fields - named <= obvious


def test_the_tests_that_the_promises_name_exist() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+\.py)`", text))
    assert len(named) > 20
    assert all((ROOT / "tests" / name).is_file() for name in named)


def test_the_documents_that_code_and_documents_name_exist() -> None:
    folders = ("diffatr_cli", "tests", "tools", "benchmarks", "examples", "docs", "recipes", "deploy")
    files = [*ROOT.glob("*.md"), *(each for folder in folders for each in (ROOT / folder).rglob("*"))]
    named: dict[str, str] = {}
    for path in files:
        if path.suffix in (".py", ".md", ".js", ".yaml", ".yml"):
            for found in re.findall(r"\bdocs/[\w./-]*\w\.\w+", path.read_text(encoding="utf-8")):
                named.setdefault(found, str(path.relative_to(ROOT)))
    assert len(named) > 10
    assert {name: path for name, path in named.items() if not (ROOT / name).exists()} == {}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
