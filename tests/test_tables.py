"""Tables of captions in every form that people have them in, and rows that are broken one by one."""

from __future__ import annotations

import codecs
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffatr_cli.data.caption_rows import CaptionRow, caption_rows, items_in
from diffatr_cli.data.captions import read_captions
from diffatr_cli.data.plan import Plan
from diffatr_cli.data.tables import column_name, read_csv, read_json
from diffatr_cli.errors import DiffATRError

ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_of(path: Path, content: str | bytes, files: bool = True) -> tuple[dict[str, CaptionRow], Plan]:
    """Write a table and read it: the usable rows by their place, and the plan."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    plan = Plan()
    return {row.place: row for row in caption_rows(path, plan, "all", files)}, plan


def skips(plan: Plan) -> dict[str, str]:
    return {skip.what: skip.reason for skip in plan.skipped}


@given(
    rows=st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=6),
    delimiter=st.sampled_from(",;\t"),
    encoding=st.sampled_from(list(ENCODINGS)),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_NONNUMERIC, csv.QUOTE_ALL]),  # the least quoting leaves some ends of lines bare
)
@shared_folder
def test_csv_of_any_delimiter_encoding_and_ending_is_read_back(
    tmp_path: Path, rows: list[tuple[str, str, str]], delimiter: str, encoding: str, ending: str, quoting: Any
) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=ending, quoting=quoting)
    writer.writerows([("File Name", "Caption 1", "caption-2"), *rows])
    (tmp_path / "t.csv").write_bytes(ENCODINGS[encoding] + out.getvalue().encode(encoding))
    plan = Plan()
    found = [tuple(row.values()) for _, row in read_csv(tmp_path / "t.csv", "all", ("file_name", "caption_1"), plan)]
    assert found == rows
    assert plan.skipped == []


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark_and_cut_within_a_character(tmp_path: Path, encoding: str) -> None:
    content = "file;caption\na.wav;a dog\nb.wav;caf\u00e9\n".encode(encoding)
    rows, plan = rows_of(tmp_path / "t.csv", content)
    assert [(row.names, row.captions) for row in rows.values()] == [(("a.wav",), ("a dog",)), (("b.wav",), ("caf\u00e9",))]
    assert plan == Plan()
    rows, plan = rows_of(tmp_path / "t.csv", content[:-3])
    assert len(rows) == 2
    assert plan.notes == ["t.csv: cut off within its last character"]


@pytest.mark.parametrize("heading", ["file", "File Name", "filename", " FILENAME ", "Path", "AUDIO", "file-name", "\ufefffile"])
@pytest.mark.parametrize("captions", ["caption", "Captions", "Caption 1", "caption1", "TEXT", "text_1"])
def test_headings_in_any_form(tmp_path: Path, heading: str, captions: str) -> None:
    (row,) = rows_of(tmp_path / "t.csv", f"{captions};{heading};Split\na dog, barking;a.wav;Test\n")[0].values()
    assert row == CaptionRow("t.csv:2", ("a.wav",), "", ("a dog, barking",), "Test")
    rows, _ = rows_of(tmp_path / "t.json", json.dumps([{captions: "a dog", heading: "a.wav"}]))
    assert [(row.names, row.captions) for row in rows.values()] == [(("a.wav",), ("a dog",))]


def test_the_heading_decides_on_the_delimiter_or_excel_s_own_line(tmp_path: Path) -> None:
    rows, _ = rows_of(tmp_path / "t.csv", 'sep=|\nfile|"caption"\na.wav|a dog, a cat; a cow\n')
    assert rows["t.csv:3"].captions == ("a dog, a cat; a cow",)
    rows, _ = rows_of(tmp_path / "t.csv", "\n\nfile,caption,,\na.wav,a dog;a cat,,\nb.wav,a cow\n")
    assert {place: row.captions for place, row in rows.items()} == {"t.csv:4": ("a dog;a cat",), "t.csv:5": ("a cow",)}
    rows, _ = rows_of(tmp_path / "t.csv", "file,caption,caption\na.wav,one,two\n")
    assert rows["t.csv:2"].captions == ("one", "two")


def test_captions_come_before_a_text_that_may_be_anything(tmp_path: Path) -> None:
    rows, _ = rows_of(tmp_path / "t.csv", "file,text,caption\na.wav,spoken words,a man speaks\n")
    assert rows["t.csv:2"].captions == ("a man speaks",)


def test_a_missing_quote_costs_no_other_row(tmp_path: Path) -> None:
    lines = ["file,caption", 'a.wav,"a dog', 'b.wav,"a cat"', "c.wav,a cow", 'd.wav,"two', 'lines"', 'e.wav,"never closed']
    lines += [f"{n}.wav,number {n}" for n in range(300)]
    rows, plan = rows_of(tmp_path / "t.csv", "\n".join(lines))
    assert [row.names[0] for row in rows.values()] == [
        *("a.wav", "b.wav", "c.wav", "d.wav", "e.wav"),
        *(f"{n}.wav" for n in range(300)),
    ]
    assert rows["t.csv:5"].captions == ("two\nlines",)
    assert [row.captions[0] for row in rows.values()][:2] == ["a dog", "a cat"]
    assert plan.notes == [
        "t.csv:2: a quote is opened and not closed",
        "t.csv:5: this row goes on over 2 lines; is a quote missing?",
        "t.csv:7: a quote is opened and not closed",
    ]


BAD_CELLS = {
    "NUL": ("a\0dog", "a NUL character in it"),
    "surrogate": ("a \ud800 dog", "half a surrogate pair in it, which is no character"),
    "brackets": ("[" * 50_000, "a caption of 50000 characters"),
    "few brackets": ("[[[[" * 50, "a caption without a letter or digit"),
    "closed brackets": ("[" * 2_000 + "]" * 2_000, "a caption without a letter or digit"),
    "nan": ("NaN", "'NaN' is no caption"),
    "none": (" None ", "'None' is no caption"),
    "null": ("null", "'null' is no caption"),
    "n/a": ("N/A", "'N/A' is no caption"),
    "blank": ("  ", "empty caption"),
    "nothing said": ("...", "a caption without a letter or digit"),
    "list of nothing": ("[None, nan, '']", "empty caption"),
}


@pytest.mark.parametrize("kind", BAD_CELLS)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_a_bad_cell_costs_its_row(tmp_path: Path, kind: str, suffix: str) -> None:
    cell, reason = BAD_CELLS[kind]
    rows = [("a.wav", "one"), ("b.wav", cell), ("c.wav", "three")]
    if suffix == ".csv":
        text = "".join(f'{file},"{caption}"\n' for file, caption in [("file", "caption"), *rows])
        content = text.encode("utf-16-le", "surrogatepass")
        content, place = codecs.BOM_UTF16_LE + content, "t.csv:3"
    elif suffix == ".tsv":
        text = "".join(f'{file}\t"{caption}"\n' for file, caption in [("file", "caption"), *rows])
        content, place = text.encode("utf-8", "surrogatepass"), "t.tsv:3"
    else:
        objects = [json.dumps({"file": file, "caption": caption}) for file, caption in rows]
        text = "\n".join(objects) if suffix == ".jsonl" else "[" + ",\n".join(objects) + "]"
        content, place = text.encode(), f"t{suffix}:2"
    found, plan = rows_of(tmp_path / f"t{suffix}", content)
    assert [row.names for row in found.values()] == [("a.wav",), ("c.wav",)]
    assert skips(plan) == {place: reason}
    usable, notes = read_captions(tmp_path / f"t{suffix}")
    assert usable == ["one", "three"]
    assert notes == [f"{place}: {reason}"]


def test_halves_of_characters_that_were_encoded_one_by_one_are_joined(tmp_path: Path) -> None:
    content = "file,caption\na.wav,a \ud83d\udc15 barks\n".encode("utf-8", "surrogatepass")
    rows, plan = rows_of(tmp_path / "t.csv", content)
    assert rows["t.csv:2"].captions == ("a \N{DOG} barks",)
    assert plan == Plan()


def test_a_line_of_200000_characters_costs_itself(tmp_path: Path) -> None:
    rows, plan = rows_of(tmp_path / "t.csv", f"file,caption\na.wav,one\nb.wav,{'x' * 200_000}\nc.wav,three\n")
    assert [row.names[0] for row in rows.values()] == ["a.wav", "c.wav"]
    assert skips(plan) == {"t.csv:3": "a line of 200007 characters"}
    # The same in quotes, over lines that the csv module would add up beyond its limit.
    quoted = "\n".join(["x" * 5000] * 40)
    rows, plan = rows_of(tmp_path / "t.csv", f'file,caption\na.wav,one\nb.wav,"{quoted}"\nc.wav,three\n')
    assert [row.names[0] for row in rows.values()][:2] == ["a.wav", "b.wav"]
    assert [row.names[0] for row in rows.values()][-1] == "c.wav"
    assert set(skips(plan).values()) == {"1 cells where the heading has 2"}


def test_a_caption_twice_in_a_row_counts_once(tmp_path: Path) -> None:
    rows, plan = rows_of(tmp_path / "t.csv", "file,caption_1,caption_2,caption_3\na.wav,a dog, a dog ,a cat\n")
    assert rows["t.csv:2"].captions == ("a dog", "a cat")
    assert plan == Plan()


def test_a_caption_that_is_none_is_noted_beside_one_that_is(tmp_path: Path) -> None:
    rows, plan = rows_of(tmp_path / "t.csv", "file,caption_1,caption_2,caption_3\na.wav,nan,a dog,\n")
    assert rows["t.csv:2"].captions == ("a dog",)
    assert (plan.skipped, plan.notes) == ([], ["t.csv:2: 'nan' is no caption; it is left out"])


@given(st.lists(TEXT, max_size=5), st.sampled_from([repr, json.dumps, lambda texts: json.dumps(texts, ensure_ascii=False)]))
def test_a_list_in_a_cell_is_its_items(texts: list[str], printed: Any) -> None:
    assert items_in(printed(texts)) == texts
    assert items_in(texts) == texts


def test_more_lists_in_cells() -> None:
    def found(cell: str) -> list[Any]:
        return list(items_in(cell))

    assert found("['a dog barks', 'a dog is barking']") == ["a dog barks", "a dog is barking"]
    assert found("""[ "it's a dog" , 'a "cat"',]""") == ["it's a dog", 'a "cat"']
    assert found("('a dog', 'a cat')") == ["a dog", "a cat"]
    assert found(str(np.array(["a dog barks", "a cat"]))) == ["a dog barks", "a cat"]
    assert found(str(np.array(["a dog " + "x" * 40] * 4))) == ["a dog " + "x" * 40] * 4
    assert found("['a dog', nan, None]") == ["a dog", None, None]
    for plain in ("[a dog]", "['a dog'", "('quietly')", "[laughs] a man", "['a' + 'b']", "['\\x4']", "['a'b'c']", "[", "()"):
        assert found(plain) == [plain]


ROWS = st.lists(
    st.dictionaries(
        TEXT, TEXT | st.integers() | st.none() | st.lists(TEXT, max_size=3) | st.dictionaries(TEXT, TEXT, max_size=2)
    ),
    max_size=5,
)


@given(rows=ROWS, indent=st.sampled_from([None, 1]), form=st.sampled_from(["lines", "list", "wavcaps"]), ascii=st.booleans())
@shared_folder
def test_json_in_its_three_forms_is_read_back(
    tmp_path: Path, rows: list[dict[str, Any]], indent: int | None, form: str, ascii: bool
) -> None:
    if form == "lines":
        text = "\n".join(json.dumps(row, ensure_ascii=ascii) for row in rows)
    else:
        document = rows if form == "list" else {"num_captions_per_audio": 1, "x": {"data": [7]}, "data": rows, "end": "]"}
        text = json.dumps(document, indent=indent, ensure_ascii=ascii)
    path = tmp_path / "t.json"
    path.write_bytes(text.encode())
    plan = Plan()
    found = list(read_json(path, "all", plan))
    assert [row for _, row in found] == [{column_name(name): value for name, value in row.items()} for row in rows]
    assert plan.skipped == []
    if indent:  # every object begins on a line of its own
        start = " " * (2 if form == "wavcaps" else 1) + "{"
        begins = [number for number, line in enumerate(text.split("\n"), 1) if line.startswith(start)]
        assert [int(place.rpartition(":")[2]) for place, _ in found] == begins or form == "lines"


def test_a_broken_object_costs_itself(tmp_path: Path) -> None:
    good = ['{"file": "a.wav", "caption": "one"}', '{"file": "z.wav", "caption": "last, ] }"}']
    broken = {
        '{"file": "b.wav", "caption": "x",}': "not JSON: ",
        '{"file": "b.wav" "caption": "a ] b, {"}': "not JSON: ",
        "[" * 100_000 + "]" * 100_000: "nested too deeply",
        '{"file": "b.wav", "caption": ' + "9" * 5000 + "}": "a number of too many digits",
        '"text"': "not a JSON object",
        "[1, 2]": "not a JSON object",
        '{"file": ["b.wav"], "caption": "x"}': "file and split must be text",
        '{"file": "b.wav", "caption": {"en": "x"}}': "a caption must be text",
        '{"file": "b.wav", "caption": NaN}': "empty caption",
        '{"file": "b\\u0000.wav", "caption": "x"}': "a NUL character in it",
        '{"file": "b\\ud800.wav", "caption": "x"}': "half a surrogate pair in it",
    }
    for text, reason in broken.items():
        for name, content in (
            ("lines.jsonl", "\n".join([good[0], text, good[1]])),
            ("list.json", "[" + ",\n".join([good[0], text, good[1]]) + "]"),
            ("wavcaps.json", '{"data": [' + ",\n".join([good[0], text, good[1]]) + "]}"),
        ):
            rows, plan = rows_of(tmp_path / name, content)
            assert [row.names[0] for row in rows.values()] == ["a.wav", "z.wav"], (name, text[:40])
            assert list(rows)[1] == f"{name}:3"
            assert [(skip.what, skip.reason.startswith(reason)) for skip in plan.skipped] == [(f"{name}:2", True)], text[:40]


def test_a_list_that_is_cut_off_keeps_what_came_before(tmp_path: Path) -> None:
    rows, plan = rows_of(tmp_path / "t.json", '[{"file": "a.wav", "caption": "one"},\n{"file": "b.wav", "capt')
    assert [row.names[0] for row in rows.values()] == ["a.wav"]
    assert list(skips(plan)) == ["t.json:2"]
    rows, plan = rows_of(tmp_path / "t.json", '[{"file": "a.wav", "caption": "one"},\n')
    assert skips(plan) == {"t.json:2": "the list is cut off here"}


def test_json_of_another_kind_says_what_is_read(tmp_path: Path) -> None:
    for text in ('{\n"a.wav": "a dog"\n}', '"text"', "7", '{"data":\n {"a": 1}}'):
        with pytest.raises(DiffATRError, match="neither a list of objects"):
            rows_of(tmp_path / "t.json", text)


def test_wavcaps_names_its_files_by_id(tmp_path: Path) -> None:
    entry = {"title": "Airplane", "caption": "An airplane is landing.", "id": "2219", "duration": 14.1, "audio": "wav_path"}
    rows, plan = rows_of(
        tmp_path / "t.json", json.dumps({"num_captions_per_audio": 1, "data": [entry, {**entry, "id": 7}]}, indent=1)
    )
    assert [(row.names, row.number) for row in rows.values()] == [(("wav_path",), "2219"), (("wav_path",), "7")]
    assert plan == Plan()
