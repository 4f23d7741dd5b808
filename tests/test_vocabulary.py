"""Lists of labels in the forms that people have them in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.core.text import normalise_caption
from diffatr_cli.data.vocabulary import read_vocabulary
from diffatr_cli.errors import DiffATRError


def read(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content, encoding="utf-8")
    return read_vocabulary(tmp_path / name)


def test_a_label_a_line(tmp_path):
    found = read(tmp_path, "l.txt", "dog bark\r\n\n  rain \n---\nDog  Bark\n")
    assert [(label.name, label.caption, label.columns) for label in found.labels] == [
        ("dog bark", "dog bark", {}),
        ("rain", "rain", {}),
    ]
    assert len(found.notes) == 2
    assert "l.txt:4: a label without a letter" in found.notes[0]
    assert "l.txt:5: 'Dog  Bark' is there already (l.txt:1)" in found.notes[1]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("column", ["Label", "NAME"])
def test_a_table_with_codes(tmp_path, delimiter, column):
    rows = (("Code", column, "Caption", "path"), ("A1", "dog", "a dog barks", "x"), ("A2", "rain", "", "y"), ("A3",))
    found = read(tmp_path, "l.csv", "\n".join(delimiter.join(row) for row in rows))
    assert [tuple(label) for label in found.labels] == [
        ("dog", "a dog barks", {"code": "A1"}),
        ("rain", "rain", {"code": "A2"}),
    ]
    assert found.columns == ["code"]
    assert len(found.notes) == 1  # the row of one cell
    assert "l.csv:4" in found.notes[0]


def test_a_table_without_such_a_column_is_named_by_its_first(tmp_path):
    found = read(tmp_path, "l.tsv", "word\tcode\ndog\t1\n")
    assert [tuple(label) for label in found.labels] == [("dog", "dog", {"code": "1"})]
    assert "first column, 'word'" in found.notes[0]


def test_json_lines(tmp_path):
    lines = [json.dumps({"name": "dog", "code": 7, "tags": ["a", "b"]}), "nonsense", json.dumps({"name": None})]
    found = read(tmp_path, "l.jsonl", "\n".join(lines))
    assert [tuple(label) for label in found.labels] == [("dog", "dog", {"code": "7", "tags": "a, b"})]
    assert [note.split(":")[1] for note in found.notes] == ["2", "3"]


def test_a_list_of_the_universal_category_system(tmp_path):
    found = read(
        tmp_path,
        "ucs.csv",
        "Category,SubCategory,CatID,CatShort,Explanations,Synonyms - Comma Separated\n"
        'ANIMALS,DOG,ANMLDog,ANML,"Dog vocalizations, barks. Wolves go elsewhere.","Bark, Hound"\n'
        "ANIMALS,MISC,ANMLMisc,ANML,Not fitting another category,\n"
        "WOOD,IMPACT,WOODImpt,WOOD,,\n",
    )
    assert [(label.name, label.caption, label.columns["catid"]) for label in found.labels] == [
        ("animals dog", "animals dog: dog vocalizations, barks", "ANMLDog"),
        ("animals", "animals", "ANMLMisc"),
        ("wood impact", "wood impact", "WOODImpt"),
    ]
    assert found.columns == ["category", "subcategory", "catid", "catshort"]


@pytest.mark.parametrize(("name", "content"), [("l.txt", "\n---\n"), ("l.csv", "label\n"), ("l.csv", ""), ("l.jsonl", "{}\n")])
def test_no_labels(tmp_path, name, content):
    with pytest.raises(DiffATRError, match="no labels in it"):
        read(tmp_path, name, content)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12), max_size=12))
def test_what_is_read_is_different_and_usable(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("vocabulary") / "l.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    try:
        labels = read_vocabulary(path).labels
    except DiffATRError:
        labels = []
    kept = [normalise_caption(label.name) for label in labels]
    assert len(kept) == len(set(kept))
    assert all(any(map(str.isalnum, label.name)) for label in labels)
    given = {normalise_caption(line) for line in lines if any(map(str.isalnum, line)) and len(line.strip()) > 4}
    assert given <= set(kept)
