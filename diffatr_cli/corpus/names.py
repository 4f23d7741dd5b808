"""New names for files, by a pattern: legal on every system, and free in their folder."""

from __future__ import annotations

import os
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.listing import folded
from ..data.tables import column_name
from ..errors import UsageError

_ILLEGAL = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\ud800-\udfff]')  # on Windows, and halves of characters, which are no text
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?:\.|$)", re.IGNORECASE)
_NUMBER = re.compile(r" \(\d+\)$")
_LONGEST = 200
"""Bytes of a name; file systems end at 255, and programs add endings of their own."""
STEM = "stem"


class Pattern:
    """A pattern of names such as `{CatID}_{label}_{stem}`; `stem` is the old name without its ending, which stays.

    Args:
        text: with the names of fields in braces, in any case; a doubled brace stands for itself.
        fields: the names that may stand in it, beside `stem`, each in one form (`tables.column_name`).

    Raises:
        UsageError: a field that is not there, or something that is no pattern.
    """

    def __init__(self, text: str, fields: Sequence[str]) -> None:
        known = [*dict.fromkeys((STEM, *fields))]
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise UsageError(f"--rename {text!r}: {error}. Write names in braces, such as {{label}}_{{stem}}.") from None
        self._parts: list[tuple[str, str | None]] = []
        for literal, field, spec, conversion in parts:
            name = None if field is None else column_name(field)
            if name is not None and (name not in known or spec or conversion):
                wrong = f"{{{field}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
                raise UsageError(f"--rename {text!r}: {wrong} is not known here. There are: {', '.join(known)}.")
            if re.search(r"[/\\]", literal):
                raise UsageError(f"--rename {text!r}: a file stays in its folder. Leave out the slash.")
            self._parts.append((literal, name))
        if not any(name for _, name in self._parts):
            raise UsageError(f"--rename {text!r}: no field in it. Write names in braces, such as {{label}}_{{stem}}.")

    def stem(self, old: str, values: Mapping[str, str]) -> str:
        """The new name, without its ending, of a file whose name without it is `old`. A name that says all this already stays."""
        before = after = ""
        seen = False
        for literal, name in self._parts:
            if name == STEM and not seen:
                before, after, seen = after + literal, "", True
            else:
                after += literal + ("" if name is None else old if name == STEM else values.get(name, ""))
        if seen and (before or after):
            start, end, plain = legal(before, whole=False), legal(after, whole=False), unicodedata.normalize("NFC", old)
            plain = _NUMBER.sub("", plain) if end else plain
            if plain.startswith(start) and plain.endswith(end) and len(plain) >= len(start) + len(end):
                return old
        return before + old + after if seen else after


def legal(name: str, *, whole: bool = True) -> str:
    """A name, without its ending, that every system takes: `_` for signs that one forbids; of a whole name also no white space
    but single spaces, no dots and spaces at its ends, and no name of a device."""
    name = _ILLEGAL.sub("_", unicodedata.normalize("NFC", name))
    if not whole:
        return name
    name = " ".join(name.split()).strip(" .") or "_"
    return f"_{name}" if _RESERVED.match(name) else name


@dataclass(frozen=True)
class Rename:
    """One file that is to be renamed: paths below the folder. `why_not` says why it is left as it is, where it is; `refused`: the
    system does not let it be renamed."""

    old: str
    new: str
    why_not: str | None = None
    refused: bool = False


def plan_renames(corpus: Path, wanted: Mapping[str, str]) -> list[Rename]:
    """What renaming comes to, in the order given; a file whose name stays is left out.

    Args:
        wanted: the new stem of each file, by its path below `corpus`.

    A name that is taken, in any case of its letters and any form of its accents, by a file that is there or by one that another
    is to be called, gets a number: `name (2).wav`. Links, files that links of this folder lead to, and files behind linked
    folders are left as they are.
    """
    targets = Counter(
        os.path.realpath(corpus / path) for path in wanted if any(part.is_symlink() for part in _below(corpus, path))
    )
    taken: dict[Path, set[str]] = {}
    plan = []
    for path, stem in wanted.items():
        old = Path(path)
        suffix = old.suffix
        stem = shortened(legal(stem), len(suffix.encode("utf-8", "surrogateescape")))
        if stem + suffix == old.name:
            continue
        why_not = _left_alone(corpus, path, targets)
        if why_not:
            plan.append(Rename(path, path, why_not))
            continue
        folder = (corpus / old).parent
        if not os.access(folder, os.W_OK):
            plan.append(Rename(path, path, "its folder cannot be written", refused=True))
            continue
        if folder not in taken:
            taken[folder] = {folded(name) for name in os.listdir(folder)}
        # A name that differs from the old one by case alone is the file's own.
        used = taken[folder] - {folded(old.name)} if folded(stem + suffix) == folded(old.name) else taken[folder]
        name, number = stem + suffix, 1
        while folded(name) in used:
            number += 1
            name = f"{shortened(stem, len(f' ({number}){suffix}'.encode('utf-8', 'surrogateescape')))} ({number}){suffix}"
            if name == old.name:
                break
        taken[folder].add(folded(name))
        if name != old.name:
            plan.append(Rename(path, str(old.with_name(name))))
    return plan


def _below(corpus: Path, path: str) -> list[Path]:
    """The file and its folders below `corpus`."""
    parts = Path(path).parts
    return [corpus.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]


def _left_alone(corpus: Path, path: str, targets: Mapping[str, int]) -> str | None:
    *folders, file = _below(corpus, path)
    if file.is_symlink():
        return "a link"
    if any(folder.is_symlink() for folder in folders):
        return "in a linked folder"
    if os.path.realpath(file) in targets:
        return "a link leads to it"
    return None


def shortened(stem: str, beside: int) -> str:
    """A stem cut such that a name has `_LONGEST` bytes at most, `beside` of them for what comes after it."""
    cut = stem.encode("utf-8")[: max(1, _LONGEST - beside)].decode("utf-8", "ignore")
    return cut.rstrip(" .") or "_"
