"""Tables of captions that are damaged anyhow: usable rows, skipped rows, or an error in words."""

from __future__ import annotations

import contextlib
import re
import tempfile
from pathlib import Path

import pytest
from fuzzing import corpus, fuzz

from diffatr_cli.data.caption_rows import CaptionRow, caption_rows
from diffatr_cli.data.captions import read_captions
from diffatr_cli.data.folder import prepare_folder
from diffatr_cli.data.plan import Plan
from diffatr_cli.errors import DiffATRError

WORDS = [b"file", b"caption", b"caption_1", b"text", b"split", b"train", b"id", b"nan", b"None", b"['a', 'b']", b'["a"]']
NAMES = [b"..", b"/", b"a.wav", b"./a.wav", b"x/../a.wav", b"x.wav/y.ogg", b"\\", b"n" * 300]
SIGNS = [b'"', b'""', b"\r\n", b"\n", b"\r", b",", b";", b"\t", b"sep=;\n"]
MARKS = [b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80"]
BRACKETS = [b"[", b"]", b"{", b"}", b'{"file": "a.wav", "caption": "x"}', b'"data": [']
VALUES = [b"\\ud800", b"\\u0000", b"NaN", b"1e999", b"null", b'"download_link": "x"']


def check(data: bytes, suffix: str) -> None:
    """Whatever comes of a table is well formed, and everything that does not come of it is told by file and line."""
    with tempfile.TemporaryDirectory() as name:
        table = Path(name, f"t{suffix}")
        table.write_bytes(data)
        plan = Plan()
        rows: list[CaptionRow] = []
        with contextlib.suppress(DiffATRError):
            for row in caption_rows(table, plan, "all", files=True):
                rows.append(row)
        for row in rows:
            texts = (*row.names, row.number, *row.captions, row.split)
            assert all(isinstance(text, str) for text in texts)
            assert "\0" not in "".join(texts)
            "".join(texts).encode()
            assert row.captions
            assert all(caption.strip() == caption != "" for caption in row.captions)
        places = [row.place for row in rows] + [skip.what for skip in plan.skipped]
        assert all(re.fullmatch(r"t\.\w+:[1-9]\d*", place) for place in places)
        with contextlib.suppress(DiffATRError):
            captions, notes = read_captions(table)
            assert len(set(captions)) == len(captions) > 0
            assert all(note.startswith(f"t{suffix}:") for note in notes)
        out = Path(name, "out")
        with contextlib.suppress(DiffATRError):
            report = prepare_folder(out, Path(name), table, workers=1)
            assert report.clips == 0  # there are no sounds
            assert report.listed <= len(rows)
        assert not out.exists()


def check_csv(data: bytes) -> None:
    check(data, ".csv")


def check_json(data: bytes) -> None:
    check(data, ".json")


@pytest.mark.parametrize("path", corpus("csv"), ids=lambda path: path.name)
def test_the_corpus_of_csv(path: Path) -> None:
    check_csv(path.read_bytes())


@pytest.mark.parametrize("path", corpus("json"), ids=lambda path: path.name)
def test_the_corpus_of_json(path: Path) -> None:
    check_json(path.read_bytes())


@pytest.mark.slow
def test_fuzz_csv() -> None:
    fuzz(check_csv, "csv", [*WORDS, *NAMES, *SIGNS, *MARKS])


@pytest.mark.slow
def test_fuzz_json() -> None:
    fuzz(check_json, "json", [*WORDS, *NAMES, *BRACKETS, *VALUES])
