"""Recipes that are damaged anyhow: a recipe that loads back equal, or a list of problems."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from fuzzing import corpus, fuzz

from diffatr_cli.recipe import RecipeError, dump_recipe, load_recipe

WORDS = [b"extends: base", b"extends: r", b"pretrain:", b"  epochs: 3", b"audio: {", b"channels: [8, 16]", b"lr: 3e-4", b"yes"]
TAGS = [b"&a ", b"*a", b"<<: ", b"!!int ", b"!!python/name:os.system ", b"? ", b"- ", b"|\n", b">\n", b"---\n", b"...\n"]
SIGNS = [b"%YAML 1.1\n", b"\t", b"\xc2\x85", b"\xef\xbb\xbf", b'"\\0"', b'"\\ud800"', b": ", b"#", b"{", b"}", b"[", b"]"]
NUMBERS = [b"1e999", b"-.inf", b"0x10", b"null", b"-0", b"1_000"]


def check(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "r.yaml")
        path.write_bytes(data)
        try:
            recipe = load_recipe(path)
        except RecipeError as error:
            assert 0 < len(error.problems) <= 41  # noqa: PT017 (nothing must be raised)
            assert all(problem and len(problem) < 2000 for problem in error.problems)  # noqa: PT017
            return
        Path(name, "again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        assert load_recipe(Path(name, "again.yaml")) == recipe


@pytest.mark.parametrize("path", corpus("recipe"), ids=lambda path: path.name)
def test_the_corpus(path: Path) -> None:
    check(path.read_bytes())


@pytest.mark.slow
def test_fuzz() -> None:
    fuzz(check, "recipe", [*WORDS, *TAGS, *SIGNS, *NUMBERS])
