"""A list of labels for sounds, as `tag` reads it: one a line, or a table with codes and categories beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..core.text import normalise_caption
from ..errors import DiffATRError
from .caption_rows import TABLE_SUFFIXES, caption_problem, named_json
from .captions import caption_lines
from .plan import Plan, Skip
from .tables import read_csv, read_json

LABELS = ("label", "name")
CAPTION = "caption"
"""The column that says how a model is asked for a label, where the label itself is no good question."""
_OWN = frozenset((*LABELS, CAPTION, "path", "probability", "score", "stem", "number"))
"""What the answer has itself: columns of these names are not repeated beside it."""
_WORDY = frozenset(("explanations", "explanation", "synonyms", "synonyms_comma_separated", "version"))
"""Columns of lists of the Universal Category System that explain a label, and are no part of it."""
_OTHERS = frozenset(("misc", "miscellaneous", "general", "other"))
"""Subcategories that say nothing beyond their category."""


class Label(NamedTuple):
    """One label."""

    name: str
    caption: str
    """What the model is asked."""
    columns: Mapping[str, str]
    """Its further columns, such as a code and a category."""


@dataclass
class Vocabulary:
    """Labels of different names and captions.

    Attributes:
        labels: one at least, in the order of the file.
        columns: the names of their further columns, each in one form (`tables.column_name`).
        notes: what in the file cannot be used, and what stands in it twice, for people.
    """

    labels: list[Label] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_vocabulary(path: Path) -> Vocabulary:
    """The labels of a file. Rows that cannot be used are skipped and noted, and so is a label that is there already.

    A CSV, TSV, JSON or JSONL file has them in a column `label` or `name`. Without one, a list with the columns `category` and
    `subcategory`, as those of the Universal Category System are, is named by both (`_ucs_label`); any other by its first column.
    A column `caption` says how a model is asked for a label; else it is asked for the label itself. Any other file has a label a
    line.

    Raises:
        DiffATRError: the file is missing or no text, or there is no label in it.
    """
    plan, found = Plan(), Vocabulary()
    if path.suffix.lower() in TABLE_SUFFIXES:
        rows = list(_table(path, plan, found))
    else:
        rows = [(place, Label(line, line, {})) for place, line in caption_lines(path, plan)]
    places: dict[str, str] = {}
    for place, label in rows:
        if problem := caption_problem(label.name) or caption_problem(label.caption):
            plan.skipped.append(Skip("", place, problem.replace("caption", "label")))
            continue
        keys = {f"name {normalise_caption(label.name)}", f"caption {normalise_caption(label.caption)}"}
        if there := next((places[key] for key in sorted(keys) if key in places), None):
            plan.skipped.append(Skip("", place, f"{label.name!r} is there already ({there})"))
            continue
        places |= dict.fromkeys(keys, place)
        found.labels.append(label)
    if not found.labels:
        raise DiffATRError(f"{path}: no labels in it. Give one a line, or a CSV, TSV or JSONL file with a column `label`.")
    found.notes += [*plan.notes, *(f"{skip.what}: {skip.reason}" for skip in plan.skipped)]
    return found


def _table(path: Path, plan: Plan, found: Vocabulary) -> Iterator[tuple[str, Label]]:
    """The labels of a table, each after its place, with the names of columns in `found`."""
    rows = list(read_json(path, "", plan) if named_json(path) else read_csv(path, "", (), plan))
    cells = [(place, {name: _text(cell) for name, cell in row.items()}) for place, row in rows]
    columns = list(dict.fromkeys(name for _, row in cells for name in row))
    if not columns:
        return
    named = next((name for name in LABELS if name in columns), None)
    ucs = named is None and all(any(name in columns for name in names) for names in (_CATEGORY, _SUBCATEGORY))
    if named is None and not ucs:
        named = columns[0]
        found.notes.append(f"{path.name}: no column `label` or `name`: the labels are those of the first column, {named!r}")
    left_out = _OWN | _WORDY if ucs else _OWN
    found.columns = [name for name in columns if name not in left_out and name != named]
    for place, row in cells:
        further = {column: row.get(column, "") for column in found.columns}
        name = row.get(named or "", "")
        yield place, _ucs_label(row, further) if ucs else Label(name, row.get(CAPTION) or name, further)


_CATEGORY = ("category",)
_SUBCATEGORY = ("subcategory", "sub_category")
_EXPLANATION = ("explanations", "explanation", "description")
_SENTENCE = re.compile(r"[.;](?:\s|$)")


def _ucs_label(row: Mapping[str, str], columns: Mapping[str, str]) -> Label:
    """What names the sounds of a category and a subcategory, for people and for a model.

    The label is both ("animals dog"), or the category where the subcategory is MISC. A model is asked for it with the first
    sentence of its explanation, if it has one ("animals dog: dog vocalizations, barks"), which names sounds better than the
    label, the subcategory or the explanation alone. Synonyms are no part of it: lists sort them by the alphabet.
    """

    def cell(names: Sequence[str]) -> str:
        return next((row[name] for name in names if row.get(name)), "")

    category, subcategory = cell(_CATEGORY), cell(_SUBCATEGORY)
    if subcategory.casefold() in _OTHERS:
        return Label(category.lower(), category.lower(), columns)
    name = f"{category} {subcategory}".lower().strip()
    explanation = _SENTENCE.split(cell(_EXPLANATION), maxsplit=1)[0].strip()
    return Label(name, f"{name}: {explanation.lower()}" if explanation else name, columns)


def _text(cell: Any) -> str:
    """A cell as text: of a list its items, of anything that has parts itself nothing."""
    if isinstance(cell, list):
        return ", ".join(filter(None, map(_text, cell)))
    return "" if cell is None or isinstance(cell, dict) else " ".join(str(cell).split())
